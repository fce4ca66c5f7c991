"""A loss of the user's own in the place of Eq. 3: `compute_loss_func` of `Trainer`, called per task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput

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
    own_loss: OwnLoss, logits: Tensor, labels: Tensor, task_ids: Tensor, classes: list[int]
) -> tuple[Tensor, Tensor]:
    """As `task_loss_sums`: losses summed per task `[N]`, and numbers of images `[N]`.

    Args:
        own_loss: of the user.
        logits: `[B, C]`.
        labels: `[B]` within the sample's task.
        task_ids: `[B]`.
        classes: `[N]` numbers of classes.
    """
    counts = torch.bincount(task_ids, minlength=len(classes))
    sums = logits.new_zeros(len(classes))
    for task in task_ids.unique().tolist():
        rows = task_ids == task
        output = TaskOutput(logits=logits[rows, : classes[task]], task_id=task)
        loss = own_loss(output, labels[rows], num_items_in_batch=counts[task])
        total = loss.sum() if loss.dim() else loss * counts[task]
        sums = sums.index_add(0, task_ids.new_tensor([task]), total[None].to(sums))
    return sums, counts
