"""What a weighting is told of a step, and what it owes: the joint between training and scheduling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepSignals:
    """What a lower step knows of its N tasks; constants, without gradients.

    Attributes:
        step: number of the optimizer step, from 1.
        epoch: number of the epoch, from 0.
        usable: bool `[N]`, tasks that are present and whose loss and gradient are finite.
        losses: `[N]` L_i (Eq. 3), nan where the task is absent.
        reference_losses: `[N]` losses of the view that Eq. 4 compares with, nan likewise; `None` unless the weighting
            needs them.
        gramian: `[N, N]` inner products g_i·g_j of the tasks' gradients with respect to the shared prompts, in
            float64; `None` unless the weighting needs them.
    """

    step: int
    usable: Tensor
    losses: Tensor
    reference_losses: Tensor | None = None
    gramian: Tensor | None = None
    epoch: int = 0


class Weighting(nn.Module):
    """Weights φ `[N]` of the tasks for one step (Eq. 9): the base of all weightings.

    A weighting of one's own needs `forward` alone. Its parameters, if it has any, are Ω: the upper level learns them
    by the implicit gradient (Eq. 11), so `forward` has to be differentiable in them.

    Attributes:
        needs_reference: whether `StepSignals.reference_losses` are computed.
        needs_gramian: whether `StepSignals.gramian` is computed.

    Example:
        >>> class Worst(Weighting):
        ...     def forward(self, signals):
        ...         return signals.usable * (signals.losses == signals.losses.nan_to_num().max())
    """

    needs_reference = False
    needs_gramian = False

    def forward(self, signals: StepSignals) -> Tensor:
        """Weights `[N]`; 0 where a task is not usable."""
        raise NotImplementedError

    def log(self) -> dict[str, Tensor]:
        """Columns of the history that explain the latest weights: name -> `[N]`, or `[N, N]` of source and target."""
        return {}

    def learned(self) -> dict[str, Tensor]:
        """What Ω stands for, name -> `[N]` detached, as the logs show it."""
        return {}

    def depends_on_omega(self, num_tasks: int) -> bool:  # noqa: ARG002 (normalised weights ask for it)
        """Whether the weights of so many tasks depend on Ω, so that there is something to learn."""
        return any(True for _ in self.parameters())


class UniformWeighting(Weighting):
    """Plain joint training: every usable task counts 1."""

    def forward(self, signals: StepSignals) -> Tensor:
        return signals.usable.to(torch.promote_types(signals.losses.dtype, torch.float32))
