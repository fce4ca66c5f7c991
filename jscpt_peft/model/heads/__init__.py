"""Feature heads, one file per idea; `FEATURE_HEADS` names them for `JSCPTConfig(intervention=...)`."""

from .adapter import FeatureAdapter
from .base import FeatureHead, TaskParameters
from .decoupled import DecoupledFeatures
from .mask_mlp import MaskMLP
from .modular import FeatureModules

FEATURE_HEADS: dict[str, type[FeatureHead] | None] = {
    "mask_mlp": MaskMLP,
    "adapter": FeatureAdapter,
    "decoupled": DecoupledFeatures,
    "modular": FeatureModules,
    "none": None,
}
"""Name -> head; `None` leaves the features as they are."""

__all__ = [
    "FEATURE_HEADS",
    "DecoupledFeatures",
    "FeatureAdapter",
    "FeatureHead",
    "FeatureModules",
    "MaskMLP",
    "TaskParameters",
]
