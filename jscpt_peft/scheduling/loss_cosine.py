"""Weights from gradient cosines and loss levels: the adaptive scheduler of the secondary summary of JSCPT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .affinity import gradient_cosine
from .scheduler import normalized
from .signals import StepSignals, Weighting


class LossCosineScheduling(Weighting):
    """φ_i = exp(α_i c_i + β_i l_i), normalised.

    c_i is the mean cosine of task i's gradient with those of the other usable tasks: tasks that agree count more, and
    one that conflicts with the others is set aside. l_i = L_i / L̄ - 1 is its loss beside their mean: what is poorly
    learned counts more. The summary gives no formula; this one is positive and leaves equal tasks equal. It weighs
    every step anew, not every epoch.

    Args:
        num_tasks: N.
        weight_normalization: as for `TaskPromptScheduler`.

    Attributes:
        alpha, beta: `[N]`, Ω; 1 at the start.

    Example:
        >>> signals = StepSignals(1, torch.tensor([True, True]), torch.tensor([3.0, 1.0]), gramian=torch.eye(2))
        >>> LossCosineScheduling(2)(signals)
        tensor([1.4621, 0.5379], grad_fn=<WhereBackward0>)
    """

    needs_gramian = True

    def __init__(self, num_tasks: int, weight_normalization: str = "sum") -> None:
        super().__init__()
        self.weight_normalization = weight_normalization
        self.alpha = nn.Parameter(torch.ones(num_tasks))
        self.beta = nn.Parameter(torch.ones(num_tasks))
        self._columns: dict[str, Tensor] = {}

    def forward(self, signals: StepSignals) -> Tensor:
        usable, cosines = signals.usable, gradient_cosine(signals.gramian).to(self.alpha.dtype)
        pairs = torch.outer(usable, usable) & ~torch.eye(len(usable), dtype=torch.bool, device=usable.device)
        agreement = cosines.masked_fill(~pairs, 0).sum(0) / pairs.sum(0).clamp(min=1)
        losses = signals.losses.detach().to(self.alpha.dtype).masked_fill(~usable, 0)
        count, total = usable.sum(), losses.sum().clamp(min=torch.finfo(losses.dtype).tiny)
        level = torch.where(usable, losses * count / total - 1, 0)
        self._columns = {
            "agreement": agreement.masked_fill(~usable, torch.nan),
            "loss_level": level.masked_fill(~usable, torch.nan),
        }
        weights = (self.alpha * agreement + self.beta * level).exp()
        return normalized(weights, usable, self.weight_normalization)

    def log(self) -> dict[str, Tensor]:
        """c and l; nan where a task was not usable."""
        return self._columns

    def learned(self) -> dict[str, Tensor]:
        """α and β."""
        return {"alpha": self.alpha.detach().clone(), "beta": self.beta.detach().clone()}

    def depends_on_omega(self, num_tasks: int) -> bool:
        """Of a single task c and l are 0, so that its weight is 1 whatever Ω is."""
        return num_tasks > 1
