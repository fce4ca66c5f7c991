"""Every task's loss and gradient from one backward, and the scheduled gradient of Eq. 9.

The model hands out each parameter as every task sees it, a view `[N, ...]` (`JSCPTModel.task_views`), and task i's
loss depends on slice i of the views alone. So the gradient of the plain sum of the task losses with respect to the
views holds every task's own gradient. Affinity (Eq. 5) and the weighted update (Eq. 9) are sums over these slices: no
second forward, no second backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from jscpt_peft.model.classifier import task_losses
from jscpt_peft.model.intervention import Views

from .distributed import sum_over_processes


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
        reference_losses: `[N]` summed losses on the reference view of Eq. 4, without gradient.
        gradients: view name -> `[N, ...]`, slice i the summed gradients of task i's images.
    """

    counts: Tensor
    losses: Tensor
    reference_losses: Tensor
    gradients: Views

    def __add__(self, other: TaskSums) -> TaskSums:
        return TaskSums(
            self.counts + other.counts,
            self.losses + other.losses,
            self.reference_losses + other.reference_losses,
            {name: gradient + other.gradients[name] for name, gradient in self.gradients.items()},
        )

    def over_processes(self, stop: bool = False) -> tuple[TaskSums, bool]:
        """The sums over the images of all processes, and whether one of these asks to stop; one communication."""
        scalars = self.counts, self.losses, self.reference_losses, self.counts.new_tensor([stop])
        counts, losses, references, stops, *gradients = sum_over_processes([*scalars, *self.gradients.values()])
        return TaskSums(counts, losses, references, dict(zip(self.gradients, gradients, strict=True))), bool(stops)

    def detach(self) -> TaskSums:
        """The same without the graph of the gradients."""
        gradients = {name: gradient.detach() for name, gradient in self.gradients.items()}
        return TaskSums(self.counts, self.losses.detach(), self.reference_losses, gradients)

    def means(self) -> TaskMeans:
        """Mean losses and gradients a task, with the tasks whose numbers are not finite set aside."""
        divisor = self.counts.clamp(min=1)
        gradients = {name: gradient / _like(divisor, gradient) for name, gradient in self.gradients.items()}
        squares = [gradient.detach().flatten(1).square().sum(1) for gradient in gradients.values()]
        finite = (self.losses + sum(squares, torch.zeros_like(self.losses))).isfinite()
        present = self.counts > 0
        usable = present & finite
        # Not a product with 0, which would keep a NaN.
        gradients = {name: torch.where(_like(usable, each), each, 0) for name, each in gradients.items()}
        return TaskMeans(
            losses=(self.losses / divisor).masked_fill(~present, torch.nan),
            reference_losses=(self.reference_losses / divisor).masked_fill(~present, torch.nan),
            gradients=gradients,
            usable=usable,
            nonfinite=present & ~finite,
        )


@dataclass(frozen=True)
class TaskMeans:
    """What a lower step knows of each task.

    Attributes:
        losses: `[N]` L_i(x̄), nan where the task is absent.
        reference_losses: `[N]` losses of the reference view, nan likewise.
        gradients: view name -> `[N, ...]`, slice i the gradient of L_i; zero where it is not usable.
        usable: bool `[N]`, tasks that are present and finite.
        nonfinite: bool `[N]`, tasks that are present with a loss or gradient that is not finite.
    """

    losses: Tensor
    reference_losses: Tensor
    gradients: Views
    usable: Tensor
    nonfinite: Tensor


def task_gradients(
    model: PeftModel,
    pixel_values: Tensor,
    task_ids: Tensor,
    labels: Tensor,
    reference: str | None = "original",
    create_graph: bool = False,
    forward_context: AbstractContextManager | None = None,
    present_tasks_only: bool = False,
) -> tuple[TaskSums, Views]:
    """Losses and gradients of every task by one forward and one backward, and the views they belong to.

    Args:
        model: a JSCPT model with trainable parameters.
        pixel_values: `[B, 3, H, W]` images of any mixture of tasks.
        task_ids: `[B]`.
        labels: `[B]` within each image's task.
        reference: the view that Eq. 4 compares x̄ with: `"original"` (x) or `"complement"` ((1 - M)∘x); `None` leaves
            its losses at zero.
        create_graph: keep the gradients differentiable, for Hessian-vector products.
        forward_context: entered for the forward pass alone, such as autocast.
        present_tasks_only: spend nothing on tasks without an image here.
    """
    with forward_context or nullcontext():
        views = model.task_views()
        output = model.classify(pixel_values, task_ids, labels, views=views, present_tasks_only=present_tasks_only)
    num_tasks = len(output.task_losses)
    counts = torch.bincount(task_ids, minlength=num_tasks)
    sums = torch.where(counts > 0, output.task_losses * counts, 0)
    leaves = {name: view for name, view in views.items() if view.requires_grad}
    gradients = torch.autograd.grad(sums.sum(), list(leaves.values()), create_graph=create_graph)
    references = torch.zeros_like(sums)
    if reference is not None:
        with torch.no_grad():
            # The same class features and no encoder pass: one [B, C] product more.
            embeds = model.reference_embeds(output.image_embeds, task_ids, reference)
            logits = model.logits(embeds, output.class_embeds, task_ids)
            references = task_losses(logits, labels, task_ids, num_tasks)
    gradients = dict(zip(leaves, gradients, strict=True))
    return TaskSums(counts, sums.detach(), torch.where(counts > 0, references * counts, 0), gradients), views


def shared_prompt_gradients(gradients: Views, num_shared_tokens: int) -> Tensor:
    """`[N, P]`: each task's gradient with respect to the shared prompts of both towers (Eq. 5), detached."""
    towers = [gradients[tower] for tower in ("vision", "text") if tower in gradients]
    slices = [gradient[:, :, :num_shared_tokens].detach().flatten(1) for gradient in towers]
    nothing = next(iter(gradients.values())).new_zeros(len(next(iter(gradients.values()))), 0)  # without prompts
    return torch.cat([nothing, *slices], dim=1)


def scheduled_gradient(
    views: Views, parameters: Sequence[Tensor], gradients: Views, weights: Tensor, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Gradient of `Σ_i φ_i L_i` with respect to the parameters (Eq. 9), one tensor a parameter.

    The views are a cheap function of the parameters (here: expanded, and concatenated), so this backward costs
    nothing beside that of the towers.

    Args:
        views: `model.task_views()`.
        parameters: the trainable parameters, in the order of the result.
        gradients: view name -> `[N, ...]` of `task_gradients`.
        weights: `[N]` φ.
        create_graph: keep the result differentiable in `weights`, and in θ where `gradients` are.
    """
    return torch.autograd.grad(
        [views[name] for name in gradients],
        parameters,
        [gradient * _like(weights, gradient).to(gradient.dtype) for gradient in gradients.values()],
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def task_products(views: Views, parameters: Sequence[Tensor], gradients: Views, vector: Tensor) -> Tensor:
    """`[N]`: p·g_i, the vector's products with every task's gradient ∇_θ L_i.

    Args:
        views, parameters, gradients: as for `scheduled_gradient`.
        vector: `[P]`, p, the elements of `parameters` in order.
    """
    gradients = {name: gradient.detach() for name, gradient in gradients.items()}
    # Eq. 9 is linear in φ: its product with p has the derivative p·g_i by φ_i.
    weights = vector.new_ones(len(next(iter(gradients.values()))), requires_grad=True)
    flat = torch.cat([g.reshape(-1) for g in scheduled_gradient(views, parameters, gradients, weights, True)])
    return torch.autograd.grad(flat @ vector, weights)[0]


def _like(vector: Tensor, tensor: Tensor) -> Tensor:
    """`[N]` shaped to broadcast over the other dimensions of `[N, ...]`."""
    return vector.view(-1, *[1] * (tensor.dim() - 1))
