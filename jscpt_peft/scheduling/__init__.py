"""Which task and which prompt features count now (paper, sections 3.3 and 3.4): tensors only, no model."""

from .affinity import affinity_from_gramian, gradient_cosine, inter_task_affinity
from .effect import NEUTRAL_EFFECT, causal_effect
from .hypergradient import (
    InverseHVP,
    hessian_vector_product,
    hypergradient,
    neumann_inverse_hvp,
    safeguarded_inverse_hvp,
)
from .scheduler import TaskPromptScheduler

__all__ = [
    "NEUTRAL_EFFECT",
    "InverseHVP",
    "TaskPromptScheduler",
    "affinity_from_gramian",
    "causal_effect",
    "gradient_cosine",
    "hessian_vector_product",
    "hypergradient",
    "inter_task_affinity",
    "neumann_inverse_hvp",
    "safeguarded_inverse_hvp",
]
