"""Prompt feature selection by causal intervention (Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..start import Start
from .base import FeatureHead, TaskParameters


class MaskMLP(FeatureHead):
    """x̄ = MLP₂(M∘x + MLP₁(M∘x)), M = sigmoid(mask) (Eq. 2), with residual bottleneck MLPs.

    MLP_k(u) = u + up_k(gelu(down_k(u))), and `up` starts at zero: with the masks at 0.5, x̄ = x. Training therefore
    starts from CLIP's own predictions.

    Attributes:
        mask: `[N, D]` logits of the masks; fixed at 0 with `learn_masks=False`.
        inner_*, outer_*: weights of MLP₁ and MLP₂, `down [N, D, h]`, `up [N, h, D]` and their biases; without the
            first dimension, and shared by all tasks, with `intervention_shared=True`.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config, tasks, width = start.config, start.num_tasks, start.sizes.projection
        self.own("mask", start.zeros(tasks, width), learned=config.learn_masks)
        add, copies = (self.share, ()) if config.intervention_shared else (self.own, (tasks,))
        hidden, generator = config.intervention_hidden, start.generator("selection")
        for mlp in ("inner", "outer"):
            down = torch.randn(*copies, width, hidden, generator=generator) / width**0.5
            add(f"{mlp}_down", down.to(start.like))
            add(f"{mlp}_down_bias", start.zeros(*copies, hidden))
            add(f"{mlp}_up", start.zeros(*copies, hidden, width))
            add(f"{mlp}_up_bias", start.zeros(*copies, width))

    def select(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
        mask = parameters["mask"].to(parameters["inner_down"].dtype)  # a fixed one is in the base model's precision
        masked = torch.sigmoid(mask[task_ids]) * x
        return _mlp(masked + _mlp(masked, task_ids, parameters, "inner"), task_ids, parameters, "outer")

    def reference(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters, kind: str) -> Tensor:
        """x, or for `"complement"` (1 - M)∘x: the features that the mask turns away, a true ablation."""
        return (1 - torch.sigmoid(parameters["mask"][task_ids])) * x if kind == "complement" else x


def _mlp(u: Tensor, task_ids: Tensor, parameters: TaskParameters, name: str) -> Tensor:
    down, up = parameters[f"{name}_down"][task_ids], parameters[f"{name}_up"][task_ids]
    hidden = torch.bmm(u.unsqueeze(1), down).squeeze(1) + parameters[f"{name}_down_bias"][task_ids]
    return u + torch.bmm(F.gelu(hidden).unsqueeze(1), up).squeeze(1) + parameters[f"{name}_up_bias"][task_ids]
