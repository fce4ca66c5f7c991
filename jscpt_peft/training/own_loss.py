"""A loss of the user's own in the place of Eq. 3: `compute_loss_func` of `Trainer`, called per task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from jscpt_peft.model.task_rows import TaskRows

# (outputs, labels, num_items_in_batch=...) -> the mean loss of these images, or one loss each
OwnLoss = Callable[..., Tensor]


@dataclass
class TaskOutput(ModelOutput):
    """What a loss is computed from: one task's images.

    Args:
        logits: `[b, C_i]` over the task's own classes.
        task_id: the task.
    """

    logits: Tensor | None = None
    task_id: int | None = None


def own_loss_sums(
    own_loss: OwnLoss, logits: Tensor, labels: Tensor, rows: TaskRows, classes: list[int]
) -> tuple[Tensor, Tensor]:
    """As `task_loss_sums`: losses summed per task `[N]`, and numbers of images `[N]`.

    Args:
        own_loss: of the user.
        logits: `[B, C]`.
        labels: `[B]` within the sample's task.
        rows: the samples' tasks.
        classes: `[N]` numbers of classes.
    """
    counts = rows.sums(torch.ones_like(rows.ids), len(classes))
    sums = list(logits.new_zeros(len(classes)))
    for place, task in enumerate(rows.tasks):
        own = rows.ids == task if rows.each is None else slice(place * rows.each, (place + 1) * rows.each)
        output = TaskOutput(logits=logits[own, : classes[task]], task_id=task)
        loss = own_loss(output, labels[own], num_items_in_batch=counts[task])
        sums[task] = (loss.sum() if loss.dim() else loss * counts[task]).to(logits)
    return torch.stack(sums), counts
