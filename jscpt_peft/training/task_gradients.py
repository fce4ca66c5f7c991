"""Every task's loss and gradient from one backward, and the scheduled gradient of Eq. 9.

The model hands out each parameter as every task sees it, `[N, ...]` (`JSCPTModel.task_parameters`), and task i's loss
depends on the slices i alone. So the gradient of the plain sum of the task losses with respect to these task
parameters holds every task's own gradient. Affinity (Eq. 5) and the weighted update (Eq. 9) are sums over these
slices: no second forward, no second backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from jscpt_peft.model.heads import TaskParameters
from jscpt_peft.model.losses import check_labels, task_loss_sums
from jscpt_peft.model.task_context import first_of_each_task
from jscpt_peft.model.task_rows import TaskRows
from jscpt_peft.model.tuner import TOWER_NAMES

from .own_loss import OwnLoss, own_loss_sums
from .task_sums import TaskSums, like


class Batch(NamedTuple):
    """Images of any mixture of tasks.

    Attributes:
        pixel_values: `[B, 3, H, W]`.
        task_ids: `[B]`.
        labels: `[B]` within the tasks.
        known: the tasks, where the host knows them and has checked ids and labels; `None`: both are still to be done.
    """

    pixel_values: Tensor
    task_ids: Tensor
    labels: Tensor
    known: TaskRows | None = None

    @classmethod
    def checked(cls, inputs: Mapping[str, Tensor], tasks: dict[str, list[str]], device: torch.device) -> Batch:
        """From what `collate` makes; ids and labels are read where they are, on the host, and moved then.

        Args:
            inputs: `pixel_values`, `task_ids`, `labels`.
            tasks: the adapter's, with their classes.
            device: of the model.

        Raises:
            ValueError: an id or a label is out of range.
        """
        known = TaskRows.of(inputs["task_ids"]).checked(len(inputs["pixel_values"]), list(tasks))
        check_labels(inputs["labels"], known.ids, tasks)
        batch = cls(*(inputs[name].to(device, non_blocking=True) for name in cls._fields[:3]))
        return batch._replace(known=known._replace(ids=batch.task_ids.long()))

    def rows(self, index: Tensor) -> Batch:
        """The images that `index`, positions or a mask, chooses."""
        return Batch(*(part[index] for part in self[:3]))

    @property
    def tasks(self) -> TaskRows:
        """`known`, or what the device is asked for."""
        return TaskRows.of(self.task_ids) if self.known is None else self.known


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
    tasks, rows = model.active_jscpt_config.tasks, batch.tasks
    if batch.known is None:
        check_labels(batch.labels, rows.checked(len(batch.labels), list(tasks)).ids, tasks)

    def loss_sums(logits: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        labels, own = batch.labels, rows
        if chosen is not None:
            labels, own = labels[chosen], TaskRows.of(batch.task_ids[chosen])
        if own_loss is None:
            return task_loss_sums(logits, labels, own, len(tasks))
        classes = [len(names) for names in tasks.values()]
        return own_loss_sums(own_loss, logits, labels, own, classes)

    with forward_context or nullcontext():
        task_parameters = model.task_parameters()
        output = model.classify(batch.pixel_values, rows, task_parameters=task_parameters, present_tasks_only=True)
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
            logits = model.logits(embeds, output.class_embeds, rows)
            references, _ = loss_sums(logits)
    gradients = dict(zip(leaves, gradients, strict=True))
    observed, head = None, model.task_adapter.head
    if head is not None and head.observes:
        present, first = first_of_each_task(batch.task_ids, len(tasks))
        observed = output.image_embeds.detach()[first].masked_fill(~present[:, None], 0)
    penalties = None if penalties is None else penalties.detach()
    return TaskSums(counts, sums.detach(), references, gradients, penalties, observed), task_parameters


def shared_gramian(
    model: PeftModel, gradients: TaskParameters, task_parameters: TaskParameters | None = None
) -> Tensor:
    """`[N, N]`: inner products of the tasks' gradients with respect to what prompts and class residuals share (Eq. 5).

    Where the tasks share neither, of what they share of the head; where they share nothing, all are 0. In float64:
    rounded, the Gramian of dependent gradients would have eigenvalues that are but noise.

    Args:
        model: the JSCPT model.
        gradients: task parameter -> `[N, ...]` of `task_gradients`.
        task_parameters: `model.task_parameters()`, where it is at hand.
    """
    task_parameters = task_parameters or model.task_parameters()
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
        [gradient * like(weights, gradient).to(gradient.dtype) for gradient in gradients.values()],
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
