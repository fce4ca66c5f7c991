"""Feature heads, one file per idea; `FEATURE_HEADS` names them for `JSCPTConfig(intervention=...)`."""

from .adapter import FeatureAdapter
from .base import FeatureHead, TaskParameters
from .mask_mlp import MaskMLP

FEATURE_HEADS: dict[str, type[FeatureHead] | None] = {
    "mask_mlp": MaskMLP,
    "adapter": FeatureAdapter,
    "none": None,
}
"""Name -> head; `None` leaves the features as they are."""

__all__ = ["FEATURE_HEADS", "FeatureAdapter", "FeatureHead", "MaskMLP", "TaskParameters"]
