"""Feature heads, one file per idea; `FEATURE_HEADS` names them for `JSCPTConfig(intervention=...)`."""

from .base import FeatureHead, TaskParameters
from .mask_mlp import MaskMLP

FEATURE_HEADS: dict[str, type[FeatureHead] | None] = {"mask_mlp": MaskMLP, "none": None}
"""Name -> head; `None` leaves the features as they are."""

__all__ = ["FEATURE_HEADS", "FeatureHead", "MaskMLP", "TaskParameters"]
