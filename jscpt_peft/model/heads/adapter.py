"""CLIP-Adapter (IJCV 2024): a small residual network on the image features, which all tasks share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..start import Start
from .base import FeatureHead, TaskParameters

REDUCTION = 4
RATIO = 0.2


class FeatureAdapter(FeatureHead):
    """x̄ = 0.2 A(x) + 0.8 x with A(x) = relu(W₂ relu(W₁ x)), D/4 wide and without biases.

    The published paper has an adapter on the class features too, the published code none: as there.

    Attributes:
        down, up: `[D/4, D]` and `[D, D/4]`, W₁ and W₂.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        width, generator = start.sizes.projection, start.generator("adapter")
        hidden = width // REDUCTION
        self.share("down", start.uniform(generator, hidden, width, bound=width**-0.5))
        self.share("up", start.uniform(generator, width, hidden, bound=hidden**-0.5))

    def select(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, parameters["down"].dtype))
        adapted = x.unsqueeze(-1)
        for name in ("down", "up"):
            adapted = F.relu(torch.bmm(parameters[name][task_ids], adapted))
        return RATIO * adapted.squeeze(-1) + (1 - RATIO) * x
