"""Which task and which prompt features count now (paper, sections 3.3 and 3.4): tensors only, no model."""

from .affinity import affinity_from_gramian, gradient_cosine, inter_task_affinity
from .effect import NEUTRAL_EFFECT, causal_effect
from .gramian import AGGREGATORS, GradientAggregator
from .grouping import Merge, agglomerate, task_groups, task_tree
from .hypergradient import (
    InverseHVP,
    hessian_vector_product,
    hypergradient,
    neumann_inverse_hvp,
    safeguarded_inverse_hvp,
)
from .joint import JointScheduling
from .scheduler import TaskPromptScheduler
from .signals import StepSignals, UniformWeighting, Weighting

__all__ = [
    "AGGREGATORS",
    "NEUTRAL_EFFECT",
    "GradientAggregator",
    "InverseHVP",
    "JointScheduling",
    "Merge",
    "StepSignals",
    "TaskPromptScheduler",
    "UniformWeighting",
    "Weighting",
    "affinity_from_gramian",
    "agglomerate",
    "causal_effect",
    "gradient_cosine",
    "hessian_vector_product",
    "hypergradient",
    "inter_task_affinity",
    "neumann_inverse_hvp",
    "safeguarded_inverse_hvp",
    "task_groups",
    "task_tree",
]
