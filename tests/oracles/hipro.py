"""HiPro-style: the prompts of the nodes from the root to the task's leaf, one after another."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPModel

from . import image_features as plain_image_features
from . import text_features


def prompts(parameters: dict[str, Tensor], tower: str, task: int) -> Tensor:
    """`[depth, n, d]`; a path that is shorter than others repeats its last node."""
    leaf = parameters[f"prompts.task_{tower}"]
    if f"prompts.group_{tower}" not in parameters:  # of single tasks' slices
        return leaf
    groups = parameters["groups"]
    names = list(dict.fromkeys(name for path in groups for name in path))
    path = list(groups[task])
    while len(path) < max(map(len, groups)):
        path.append(path[-1])
    nodes = [parameters[f"prompts.group_{tower}"][names.index(name)] for name in path]
    return torch.cat([*nodes, leaf[task]], dim=1)


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:
    """Features `[B, D]` of one task's images."""
    return plain_image_features(clip, prompts(parameters, "vision", task), pixel_values)


def class_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, token_ids: list[list[int]]) -> Tensor:
    """Features `[C, D]` of one task's classes."""
    return text_features(clip, prompts(parameters, "text", task), token_ids)
