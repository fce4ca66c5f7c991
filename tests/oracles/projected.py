"""The summary's variant of JSCPT: prompts P^(k) = W_k P, causal and spurious features, confounders one by one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear
from transformers import CLIPModel

from . import image_features as plain_image_features
from . import text_features


def prompts(parameters: dict[str, Tensor], tower: str, task: int) -> Tensor:
    """`[depth, n, d]`: W_k on every token."""
    shared, down, up = (parameters[f"prompts.{tower}_{part}"] for part in ("shared", "down", "up"))
    return linear(shared, torch.eye(shared.shape[-1], dtype=shared.dtype) + up[task] @ down[task])


def parts(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Z_c `[B, D]` and Z_s `[B, s]`."""
    hidden = gelu(linear(x, parameters["head.down"], parameters["head.down_bias"]))
    return x + linear(hidden, parameters["head.causal_up"]), linear(hidden, parameters["head.spurious_up"])


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:
    """`[K, B, D]`: what stands for each image beside each confounder of the bank."""
    x = plain_image_features(clip, prompts(parameters, "vision", task), pixel_values)
    causal, _ = parts(parameters, x)
    return torch.stack(
        [causal + linear(confounder, parameters["head.back"]) for confounder in parameters["head.bank"]]
    )


def class_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, token_ids: list[list[int]]) -> Tensor:
    """Features `[C, D]` of one task's classes."""
    return text_features(clip, prompts(parameters, "text", task), token_ids)


def reconstruction(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Mean over one task's images of ‖Z_c + back Z_s - x‖² / ‖x‖²."""
    causal, spurious = parts(parameters, x)
    error = causal + linear(spurious, parameters["head.back"]) - x
    return torch.stack([e @ e / (each @ each) for e, each in zip(error, x, strict=True)]).mean()


def decorrelation(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """‖corr(Z_c, Z_s)‖²_F over one task's images."""
    return squared_correlations(*parts(parameters, x))


def squared_correlations(one: Tensor, other: Tensor) -> Tensor:
    """Squared correlation coefficients of every feature `[b, p]` with every one `[b, q]`, summed."""
    total = one.new_zeros(())
    for first in one.T:
        for second in other.T:
            covariance = ((first - first.mean()) * (second - second.mean())).mean()
            total = total + covariance**2 / ((first.var(correction=0) + 1e-6) * (second.var(correction=0) + 1e-6))
    return total


def penalties(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixels: Tensor, *_) -> dict[str, Tensor]:
    """Terms of one task's penalty, without their weights."""
    x = plain_image_features(clip, prompts(parameters, "vision", task), pixels)
    return {"reconstruction": reconstruction(parameters, x), "decorrelation": decorrelation(parameters, x)}
