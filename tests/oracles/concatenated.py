"""Shared and task tokens side by side, and Eq. 2: JSCPT; with one of the two kinds of tokens CoOp and VPT."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPModel

from . import image_features as plain_image_features
from . import intervention, text_features


def prompts(clip: CLIPModel, parameters: dict[str, Tensor], tower: str, task: int) -> Tensor:
    """`[depth, n, d]`; n = 0 where the tower has none."""
    shared, own = (parameters.get(f"prompts.{tower}_{kind}") for kind in ("shared", "task"))
    parts = [part for part in (shared, None if own is None else own[task]) if part is not None]
    if not parts:
        width = getattr(clip, f"{tower}_model").config.hidden_size
        return clip.logit_scale.new_zeros(1, 0, width)
    return torch.cat(parts, dim=1)


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:
    """Features `[B, D]` of one task's images, selected by Eq. 2 where the adapter has a head."""
    x = plain_image_features(clip, prompts(clip, parameters, "vision", task), pixel_values)
    if "head.mask" not in parameters:
        return x
    parts = [f"head.{mlp}_{part}" for mlp in ("inner", "outer") for part in ("down", "down_bias", "up", "up_bias")]
    return intervention(x, parameters["head.mask"][task], *(parameters[part][task] for part in parts))


def class_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, token_ids: list[list[int]]) -> Tensor:
    """Features `[C, D]` of one task's classes."""
    return text_features(clip, prompts(clip, parameters, "text", task), token_ids)
