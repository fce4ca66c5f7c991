"""Weights from gradient cosines and loss levels: the adaptive scheduler of the secondary summary of JSCPT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .affinity import gradient_cosine
from .signals import StepSignals, Weighting


class LossCosineScheduling(Weighting):
    """φ_i ∝ exp(α_i c_i + β_i l_i), over the usable tasks, with the sum of their number.

    c_i is the mean cosine of task i's gradient with those of the other usable tasks: tasks that agree count more, and
    one that conflicts with the others is set aside. l_i = L_i / L̄ - 1 is its loss beside their mean: what is poorly
    learned counts more. The summary gives no formula; this one is bounded, positive and leaves equal tasks equal. It
    weighs every step anew, not every epoch.

    Args:
        num_tasks: N.

    Attributes:
        alpha, beta: `[N]`, Ω; 1 at the start.

    Example:
        >>> signals = StepSignals(1, torch.tensor([True, True]), torch.tensor([3.0, 1.0]), gramian=torch.eye(2))
        >>> LossCosineScheduling(2)(signals)
        tensor([1.4621, 0.5379], grad_fn=<MulBackward0>)
    """

    needs_gramian = True

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(num_tasks))
        self.beta = nn.Parameter(torch.ones(num_tasks))
        self._columns: dict[str, Tensor] = {}

    def forward(self, signals: StepSignals) -> Tensor:
        usable, cosines = signals.usable, gradient_cosine(signals.gramian).to(self.alpha.dtype)
        unknown = ~torch.outer(usable, usable)
        pairs = ~unknown & ~torch.eye(len(usable), dtype=torch.bool, device=usable.device)
        agreement = cosines.masked_fill(~pairs, 0).sum(0) / pairs.sum(0).clamp(min=1)
        losses = signals.losses.detach().to(self.alpha.dtype).masked_fill(~usable, 0)
        count, total = usable.sum(), losses.sum().clamp(min=torch.finfo(losses.dtype).tiny)
        level = torch.where(usable, losses * count / total - 1, 0)
        self._columns = {
            "agreement": agreement.masked_fill(~usable, torch.nan),
            "loss_level": level.masked_fill(~usable, torch.nan),
            "gradient_cosine": cosines.masked_fill(unknown, torch.nan),
        }
        if not bool(usable.any()):
            return torch.zeros_like(losses)
        scores = self.alpha * agreement.detach() + self.beta * level
        return count * scores.masked_fill(~usable, -torch.inf).softmax(0)

    def log(self) -> dict[str, Tensor]:
        return self._columns

    def learned(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha.detach().clone(), "beta": self.beta.detach().clone()}

    def depends_on_omega(self, num_tasks: int) -> bool:
        """A task alone has the weight 1 whatever Ω."""
        return num_tasks > 1
