"""MT-CRL-style: modules of the features and how much each task takes of them; every penalty as its formula says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import CLIPModel

from . import concatenated, task_loss
from .concatenated import class_features
from .projected import squared_correlations

__all__ = ["class_features", "image_features", "penalties"]


def modules(parameters: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Z_k `[B, r]`, one after the other."""
    return [x @ down.T for down in parameters["head.down"]]


def mixed(parameters: dict[str, Tensor], taken: Tensor, x: Tensor) -> Tensor:
    """x̄ `[B, D]` where a task takes `taken` `[K]` of the modules."""
    pairs = zip(taken, modules(parameters, x), parameters["head.up"], strict=True)
    return sum(weight * (z @ up.T) for weight, z, up in pairs)


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:
    """Features `[B, D]` of one task's images."""
    x = concatenated.image_features(clip, parameters, task, pixel_values)
    return mixed(parameters, torch.sigmoid(parameters["head.routing"][task]), x)


def decorrelation(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Σ_{k<l} ‖corr(Z_k, Z_l)‖²_F over one task's images."""
    z = modules(parameters, x)
    return sum(squared_correlations(z[k], z[m]) for m in range(len(z)) for k in range(m))


def sparsity(parameters: dict[str, Tensor]) -> Tensor:
    """‖A‖₁ of all tasks."""
    return torch.sigmoid(parameters["head.routing"]).abs().sum()


def entropy(parameters: dict[str, Tensor]) -> Tensor:
    """Entropy of how much all tasks together use each module."""
    usage = torch.sigmoid(parameters["head.routing"]).sum(0)
    shares = usage / usage.sum()
    return -sum(share * torch.log(share) for share in shares)


def invariance(parameters: dict[str, Tensor], task: int, risks: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """Σ_e ‖∇_A R_e - mean_e ∇_A R_e‖² of a task, whose risks R_e are functions of what it takes of the modules."""
    taken = torch.sigmoid(parameters["head.routing"][task])
    gradients = [torch.autograd.grad(risk(taken), taken, create_graph=True)[0] for risk in risks]
    mean = sum(gradients) / len(gradients)
    return sum(((gradient - mean) ** 2).sum() for gradient in gradients)


def penalties(
    clip: CLIPModel,
    parameters: dict[str, Tensor],
    task: int,
    pixels: Tensor,
    labels: Tensor,
    token_ids: list[list[int]],
) -> dict[str, Tensor]:
    """Terms of one task's penalty, without their weights; of what concerns all N tasks its N-th part."""
    x = concatenated.image_features(clip, parameters, task, pixels)
    classes, tasks = class_features(clip, parameters, task, token_ids), len(parameters["head.routing"])

    def risk(half: slice) -> Callable[[Tensor], Tensor]:
        return lambda taken: task_loss(clip, mixed(parameters, taken, x[half]), classes, labels[half])

    halves = slice(None, len(x) // 2), slice(len(x) // 2, None)
    return {
        "decorrelation": decorrelation(parameters, x),
        "sparsity": sparsity(parameters) / tasks,
        "entropy": -entropy(parameters) / tasks,
        "invariance": invariance(parameters, task, [risk(half) for half in halves]),
    }
