"""CLIP-Adapter: two linear maps with ReLUs beside the features themselves, before fixed class texts."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, relu
from transformers import CLIPModel

from . import concatenated
from .concatenated import class_features

__all__ = ["class_features", "image_features"]


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:
    """Adapted features `[B, D]` of images; all tasks have the same adapter."""
    x = concatenated.image_features(clip, {}, task, pixel_values)
    return 0.2 * relu(linear(relu(linear(x, parameters["head.down"])), parameters["head.up"])) + 0.8 * x
