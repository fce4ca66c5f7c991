"""Eq. 5: how much a step on one task's loss helps another."""

from __future__ import annotations

import torch
from torch import Tensor

from jscpt_peft.choices import check_choice

AFFINITIES = ("clipped", "cosine", "unclipped")

# A gradient whose norm is far below 1e-6 counts as zero.
EPS = 1e-12


def inter_task_affinity(gradients: Tensor, kind: str = "clipped") -> Tensor:
    """Affinity A[i, j] of source task i on target task j (paper, Eq. 5).

    `A[i, j] = g_i·g_j / (‖g_j‖² + eps)`. The paper states A in [-1, 1], which the formula alone does not give (it is
    the cosine times ‖g_i‖/‖g_j‖): "clipped" clips it, "unclipped" leaves it, "cosine" drops the ratio of the norms.

    Args:
        gradients: `[N, P]`, each task's gradient of its loss with respect to the shared prompts.
        kind: "clipped", "cosine" or "unclipped".

    Returns:
        `[N, N]` with a zero diagonal, in float32 at least. A zero gradient gives zeros in its row and column.

    Raises:
        ValueError: `kind` is none of the three, or `gradients` is not a matrix.

    Example:
        >>> inter_task_affinity(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([[0.0000, 0.5000],
                [1.0000, 0.0000]])
    """
    if gradients.dim() != 2:
        raise ValueError(f"`gradients` must be [tasks, parameters], got the shape {tuple(gradients.shape)}")
    gradients = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
    return affinity_from_gramian(gradients @ gradients.T, kind)


def affinity_from_gramian(gramian: Tensor, kind: str = "clipped") -> Tensor:
    """`inter_task_affinity` from the inner products `gramian[i, j] = g_i·g_j` `[N, N]` alone."""
    check_choice("kind", kind, AFFINITIES)
    by_target = gramian / (_squared_norms(gramian) + EPS)  # column j by the norm of g_j
    affinity = gradient_cosine(gramian) if kind == "cosine" else by_target
    if kind == "clipped":
        affinity = affinity.clamp(-1, 1)
    diagonal = torch.eye(len(gramian), dtype=torch.bool, device=gramian.device)
    return affinity.masked_fill(diagonal, 0)


def gradient_cosine(gramian: Tensor) -> Tensor:
    """Cosines between the tasks' gradients, `[N, N]` from their Gramian `[N, N]`; 0 where a gradient is zero."""
    norms = _squared_norms(gramian).sqrt()
    return (gramian / (torch.outer(norms, norms) + EPS)).clamp(-1, 1)


def _squared_norms(gramian: Tensor) -> Tensor:
    if gramian.dim() != 2 or gramian.shape[0] != gramian.shape[1]:
        raise ValueError(f"`gramian` must be [tasks, tasks], got the shape {tuple(gramian.shape)}")
    return gramian.diagonal()
