"""What a lower step knows of each task: sums over batches and processes, and the means that become of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jscpt_peft.model.heads import FeatureHead, TaskParameters
from jscpt_peft.model.losses import mean_losses
from jscpt_peft.scheduling import StepSignals, gradient_cosine

from .distributed import process_index, sum_over_processes, world_size


@dataclass(frozen=True)
class TaskSums:
    """Sums over the images of each task, so that batches and processes add up: `first + second`.

    Attributes:
        counts: `[N]` images of each task.
        losses: `[N]` summed losses on x̄ (Eq. 3).
        reference_losses: `[N]` summed losses on the reference view of Eq. 4, without gradient, if asked for.
        gradients: task parameter -> `[N, ...]`, slice i the summed gradients of task i's images.
        penalties: `[N]` penalties of the head times the images that they are of, without gradient, where it has any.
        observed: `[N, D]` x of each task's first image, for a head that observes; zero where there is none.
    """

    counts: Tensor
    losses: Tensor
    reference_losses: Tensor | None
    gradients: TaskParameters
    penalties: Tensor | None = None
    observed: Tensor | None = None

    def __add__(self, other: TaskSums) -> TaskSums:
        other = other._without_observed(self.counts > 0)
        return self._of([one + another for one, another in zip(self._tensors(), other._tensors(), strict=True)])

    def over_processes(self, stop: bool = False) -> tuple[TaskSums, Tensor]:
        """The sums over the images of all processes, and whether one of these asks to stop, bool `[1]`.

        One communication, and nothing waits for it.

        Every process has as many images of a task as the others: what the first one observes is the first.
        """
        asked = torch.full_like(self.counts[:1], stop)
        if world_size() == 1:
            return self, asked.bool()
        own = self._without_observed(torch.full_like(self.counts, process_index() > 0, dtype=torch.bool))
        *sums, stops = sum_over_processes([*own._tensors(), asked])
        return self._of(sums), stops > 0

    def _without_observed(self, of_tasks: Tensor) -> TaskSums:
        """The same but for the observed images of some tasks, bool `[N]`."""
        if self.observed is None:
            return self
        return replace(self, observed=self.observed.masked_fill(of_tasks[:, None], 0))

    def clone(self) -> TaskSums:
        """The same in memory of its own."""
        return self._of([tensor.clone() for tensor in self._tensors()])

    def detach(self) -> TaskSums:
        """The same without graphs."""
        return self._of([tensor.detach() for tensor in self._tensors()])

    def _tensors(self) -> list[Tensor]:
        return [self.counts, self.losses, *self._optional().values(), *self.gradients.values()]

    def _optional(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in ("reference_losses", "penalties", "observed")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _of(self, tensors: Sequence[Tensor]) -> TaskSums:
        counts, losses, *others = tensors
        optional = {name: others.pop(0) for name in self._optional()}
        gradients = dict(zip(self.gradients, others, strict=True))
        return replace(self, counts=counts, losses=losses, gradients=gradients, **optional)

    def mean_loss(self) -> Tensor:
        """The mean loss of the tasks whose loss is finite; nan where none is."""
        losses = mean_losses(self.losses, self.counts)
        return losses.where(losses.isfinite(), torch.nan).nanmean()  # one task's NaN is not the others'

    def means(self) -> TaskMeans:
        """Mean losses and gradients per task, with the tasks whose numbers are not finite set aside."""
        divisor = self.counts.clamp(min=1)
        gradients = {name: gradient / like(divisor, gradient) for name, gradient in self.gradients.items()}
        squares = [gradient.detach().flatten(1).square().sum(1) for gradient in gradients.values()]
        finite = (self.losses + sum(squares, torch.zeros_like(self.losses))).isfinite()
        present = self.counts > 0
        usable = present & finite
        # Not a product with 0, which would keep a NaN.
        gradients = {name: torch.where(like(usable, each), each, 0) for name, each in gradients.items()}
        sums = (self.losses, self.reference_losses, self.penalties)
        losses, references, penalties = (None if each is None else mean_losses(each, self.counts) for each in sums)
        return TaskMeans(losses, references, gradients, usable, present & ~finite, penalties, self.observed)


@dataclass(frozen=True)
class TaskMeans:
    """What a lower step knows of each task.

    Attributes:
        losses: `[N]` L_i(x̄), nan where the task is absent.
        reference_losses: `[N]` losses of the reference view, nan likewise, if asked for.
        gradients: task parameter -> `[N, ...]`, slice i the gradient of L_i; zero where it is not usable.
        usable: bool `[N]`, tasks that are present and finite.
        nonfinite: bool `[N]`, tasks that are present with a loss or gradient that is not finite.
        penalties: `[N]` mean penalties of the head, nan likewise, where it has any.
        observed: as of `TaskSums`.
    """

    losses: Tensor
    reference_losses: Tensor | None
    gradients: TaskParameters
    usable: Tensor
    nonfinite: Tensor
    penalties: Tensor | None = None
    observed: Tensor | None = None

    def signals(self, step: int, epoch: int, gramian: Tensor | None = None) -> StepSignals:
        """What a weighting is told of optimizer step `step`."""
        return StepSignals(step, self.usable, self.losses, self.reference_losses, gramian, epoch)

    def columns(self, gramian: Tensor | None = None) -> dict[str, Tensor]:
        """Columns of the history; with the gradients' Gramian `[N, N]` their cosines, nan where one is not usable."""
        columns = {"loss": self.losses, "nonfinite": self.nonfinite}
        if self.penalties is not None:
            columns["penalty"] = self.penalties
        if gramian is not None:  # a gradient set to zero is related to no other
            unknown = ~torch.outer(self.usable, self.usable)
            columns["gradient_cosine"] = gradient_cosine(gramian).masked_fill(unknown, torch.nan)
        return columns

    def show(self, head: FeatureHead | None) -> None:
        """Shows a head that observes the first image of every usable task."""
        if head is not None and self.observed is not None:
            tasks = self.usable.nonzero()[:, 0]
            head.observe(self.observed[tasks], tasks)


def like(vector: Tensor, tensor: Tensor) -> Tensor:
    """`[N]` shaped to broadcast over the other dimensions of `[N, ...]`."""
    return vector.view(-1, *[1] * (tensor.dim() - 1))
