"""Every task's loss and gradient from one backward, and the scheduled gradient of Eq. 9.

The model hands out each parameter as every task sees it, `[N, ...]` (`JSCPTModel.task_parameters`), and task i's loss
depends on the slices i alone. So the gradient of the plain sum of the task losses with respect to these task
parameters holds every task's own gradient. Affinity (Eq. 5) and the weighted update (Eq. 9) are sums over these
slices: no second forward, no second backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from jscpt_peft.model.heads import FeatureHead, TaskParameters
from jscpt_peft.model.losses import check_labels, mean_losses, task_loss_sums
from jscpt_peft.model.task_context import first_of_each_task
from jscpt_peft.model.tuner import TOWER_NAMES
from jscpt_peft.scheduling import StepSignals

from .distributed import process_index, sum_over_processes
from .own_loss import OwnLoss, own_loss_sums


class Batch(NamedTuple):
    """Images `[B, 3, H, W]` of any mixture of tasks, their task ids `[B]` and their labels `[B]` within these."""

    pixel_values: Tensor
    task_ids: Tensor
    labels: Tensor

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> Batch:
        """From what `collate` makes."""
        return cls(*(inputs[name] for name in cls._fields))

    def rows(self, index: Tensor) -> Batch:
        """The images that `index`, positions or a mask, chooses."""
        return Batch(*(part[index] for part in self))


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

    def over_processes(self, stop: bool = False) -> tuple[TaskSums, bool]:
        """The sums over the images of all processes, and whether one of these asks to stop; one communication.

        Every process has as many images of a task as the others: what the first one observes is the first.
        """
        own = self._without_observed(torch.full_like(self.counts, process_index() > 0, dtype=torch.bool))
        *sums, stops = sum_over_processes([*own._tensors(), self.counts.new_tensor([stop])])
        return self._of(sums), bool(stops)

    def _without_observed(self, of_tasks: Tensor) -> TaskSums:
        """The same but for the observed images of some tasks, bool `[N]`."""
        if self.observed is None:
            return self
        return replace(self, observed=self.observed.masked_fill(of_tasks[:, None], 0))

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

    def means(self) -> TaskMeans:
        """Mean losses and gradients per task, with the tasks whose numbers are not finite set aside."""
        divisor = self.counts.clamp(min=1)
        gradients = {name: gradient / _like(divisor, gradient) for name, gradient in self.gradients.items()}
        squares = [gradient.detach().flatten(1).square().sum(1) for gradient in gradients.values()]
        finite = (self.losses + sum(squares, torch.zeros_like(self.losses))).isfinite()
        present = self.counts > 0
        usable = present & finite
        # Not a product with 0, which would keep a NaN.
        gradients = {name: torch.where(_like(usable, each), each, 0) for name, each in gradients.items()}
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

    def columns(self) -> dict[str, Tensor]:
        """Columns of the history."""
        penalties = {} if self.penalties is None else {"penalty": self.penalties}
        return {"loss": self.losses, **penalties, "nonfinite": self.nonfinite}

    def show(self, head: FeatureHead | None) -> None:
        """Shows a head that observes the first image of every usable task."""
        if head is not None and self.observed is not None:
            tasks = self.usable.nonzero()[:, 0]
            head.observe(self.observed[tasks], tasks)


def task_gradients(
    model: PeftModel,
    batch: Batch,
    reference: str | None = None,
    create_graph: bool = False,
    forward_context: AbstractContextManager | None = None,
    own_loss: OwnLoss | None = None,
    penalised: bool = True,
) -> tuple[TaskSums, TaskParameters]:
    """Losses and gradients of every task by one forward and one backward, and the task parameters they belong to.

    Nothing is spent on tasks without an image in the batch.

    Args:
        model: a JSCPT model with trainable parameters.
        batch: images of any mixture of tasks.
        reference: the view that Eq. 4 compares x̄ with: `"original"` (x) or `"complement"` ((1 - M)∘x); `None`: none.
        create_graph: keep the gradients differentiable, for Hessian-vector products.
        forward_context: entered for the forward pass alone, such as autocast.
        own_loss: takes the place of Eq. 3.
        penalised: the gradients, not the losses, are with the penalties of the head. Its batch statistics are those
            of this batch.
    """
    tasks = model.active_jscpt_config.tasks

    def loss_sums(logits: Tensor, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        labels, task_ids = batch.labels[rows], batch.task_ids[rows]
        if own_loss is None:
            return task_loss_sums(logits, labels, task_ids, len(tasks))
        classes = [len(names) for names in tasks.values()]
        return own_loss_sums(own_loss, logits, labels, task_ids, classes)

    with forward_context or nullcontext():
        task_parameters = model.task_parameters()
        output = model.classify(*batch[:2], task_parameters=task_parameters, present_tasks_only=True)
        check_labels(batch.labels, batch.task_ids, tasks)
        sums, counts = loss_sums(output.logits)
        penalties = model.penalties(output, batch.task_ids, task_parameters, loss_sums) if penalised else None
        penalties = None if penalties is None else counts * penalties
    total = sums if penalties is None else sums + penalties
    leaves = {name: each for name, each in task_parameters.items() if each.requires_grad}
    options = {"create_graph": create_graph, "allow_unused": True, "materialize_grads": True}  # penalties' alone
    gradients = torch.autograd.grad(total.sum(), list(leaves.values()), **options)
    references = None
    if reference is not None:
        with torch.no_grad():
            # The same class features and no encoder pass: one [B, C] product more.
            embeds = model.reference_embeds(output.image_embeds, batch.task_ids, reference)
            logits = model.logits(embeds, output.class_embeds, batch.task_ids)
            references, _ = loss_sums(logits)
    gradients = dict(zip(leaves, gradients, strict=True))
    observed, head = None, model.task_adapter.head
    if head is not None and head.observes:
        present, first = first_of_each_task(batch.task_ids, len(tasks))
        observed = output.image_embeds.detach()[first].masked_fill(~present[:, None], 0)
    penalties = None if penalties is None else penalties.detach()
    return TaskSums(counts, sums.detach(), references, gradients, penalties, observed), task_parameters


def shared_gramian(model: PeftModel, gradients: TaskParameters) -> Tensor:
    """`[N, N]`: inner products of the tasks' gradients with respect to what prompts and class residuals share (Eq. 5).

    Where the tasks share neither, of what they share of the head; where they share nothing, all are 0. In float64:
    rounded, the Gramian of dependent gradients would have eigenvalues that are but noise.

    Args:
        model: the JSCPT model.
        gradients: task parameter -> `[N, ...]` of `task_gradients`.
    """
    task_parameters = model.task_parameters()
    prompts = {tower: task_parameters[tower] for tower in TOWER_NAMES if tower in gradients}
    adapter, first = model.task_adapter, next(iter(gradients.values()))
    parts = [first.new_zeros(len(first), 0)]
    if prompts:
        parts.append(adapter.prompts.shared_gradients(prompts, {tower: gradients[tower] for tower in prompts}))
    if "class_residual" in gradients:
        parts.append(adapter.class_residual.shared_gradients(gradients["class_residual"]))
    if not any(part.shape[1] for part in parts) and adapter.head is not None:
        of_head = adapter.head.tensors().keys() & gradients.keys() - {*adapter.head.stacked}
        parts += [gradients[name].flatten(1) for name in sorted(of_head)]
    shared = torch.cat(parts, dim=1)
    shared = shared.detach() if shared.device.type == "mps" else shared.detach().double()  # which has no float64
    return shared @ shared.T


def scheduled_gradient(
    task_parameters: TaskParameters,
    parameters: Sequence[Tensor],
    gradients: TaskParameters,
    weights: Tensor,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Gradient of `Σ_i φ_i L_i` with respect to the parameters (Eq. 9), one tensor per parameter.

    Task parameters are a cheap function of the parameters (for JSCPT: expanded, and concatenated), so this backward
    costs nothing beside that of the towers.

    Args:
        task_parameters: `model.task_parameters()`.
        parameters: the trainable parameters, in the order of the result.
        gradients: task parameter -> `[N, ...]` of `task_gradients`.
        weights: `[N]` φ.
        create_graph: keep the result differentiable in `weights`, and in θ where `gradients` are.
    """
    return torch.autograd.grad(
        [task_parameters[name] for name in gradients],
        parameters,
        [gradient * _like(weights, gradient).to(gradient.dtype) for gradient in gradients.values()],
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def task_products(
    task_parameters: TaskParameters, parameters: Sequence[Tensor], gradients: TaskParameters, vector: Tensor
) -> Tensor:
    """`[N]`: p·g_i, the vector's products with every task's gradient ∇_θ L_i.

    Args:
        task_parameters, parameters, gradients: as for `scheduled_gradient`.
        vector: `[P]`, p, the elements of `parameters` in order.
    """
    gradients = {name: gradient.detach() for name, gradient in gradients.items()}
    # Eq. 9 is linear in φ: its product with p has the derivative p·g_i by φ_i.
    weights = vector.new_ones(len(next(iter(gradients.values()))), requires_grad=True)
    weighted = scheduled_gradient(task_parameters, parameters, gradients, weights, create_graph=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in weighted])
    return torch.autograd.grad(flat @ vector, weights)[0]


def _like(vector: Tensor, tensor: Tensor) -> Tensor:
    """`[N]` shaped to broadcast over the other dimensions of `[N, ...]`."""
    return vector.view(-1, *[1] * (tensor.dim() - 1))
