"""MmAP-style: torch's own Kronecker products of a group's and a task's source prompts, block by block."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPModel

from . import image_features as plain_image_features
from . import text_features


def prompts(parameters: dict[str, Tensor], tower: str, task: int) -> Tensor:
    """`[depth, n, d]`: the group's tokens and the task's own; of single tasks' slices these alone."""
    parts = [("task", task if "prompts.group_source" in parameters else ...)]
    if "prompts.group_source" in parameters:
        groups = parameters["groups"]
        parts.insert(0, ("group", list(dict.fromkeys(groups)).index(groups[task])))
    tokens = []
    for part, index in parts:
        factors, sources = (parameters[f"prompts.{part}_{name}"][index] for name in (tower, "source"))
        products = [torch.kron(factor[None], source) for factor, source in zip(factors, sources, strict=True)]
        tokens.append(torch.stack(products))
    return torch.cat(tokens, dim=1)


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:
    """Features `[B, D]` of one task's images."""
    return plain_image_features(clip, prompts(parameters, "vision", task), pixel_values)


def class_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, token_ids: list[list[int]]) -> Tensor:
    """Features `[C, D]` of one task's classes."""
    return text_features(clip, prompts(parameters, "text", task), token_ids)
