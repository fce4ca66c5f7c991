"""Which task and which prompt features count now (paper, sections 3.3 and 3.4): tensors only, no model."""

from .affinity import affinity_from_gramian, gradient_cosine, inter_task_affinity
from .balancing import FAMO, DynamicWeightAverage, GradNorm, UncertaintyWeighting
from .effect import NEUTRAL_EFFECT, causal_effect
from .gramian import AGGREGATORS, GradientAggregator, GramianWeighting
from .grouping import Merge, agglomerate, task_groups, task_tree
from .hypergradient import (
    InverseHVP,
    hessian_vector_product,
    hypergradient,
    neumann_inverse_hvp,
    safeguarded_inverse_hvp,
)
from .joint import JointScheduling
from .loss_cosine import LossCosineScheduling
from .scheduler import TaskPromptScheduler
from .signals import StepSignals, UniformWeighting, Weighting

__all__ = [
    "AGGREGATORS",
    "FAMO",
    "NEUTRAL_EFFECT",
    "DynamicWeightAverage",
    "GradNorm",
    "GradientAggregator",
    "GramianWeighting",
    "InverseHVP",
    "JointScheduling",
    "LossCosineScheduling",
    "Merge",
    "StepSignals",
    "TaskPromptScheduler",
    "UncertaintyWeighting",
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
