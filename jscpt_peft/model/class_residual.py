"""A residual on the class features: parameters per class, which prompts lack (TaskRes, CVPR 2023, has one task's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .start import Start
from .task_module import TaskModule

CLASS_RESIDUALS = ("none", "task", "shared", "both")


class ClassResidual(TaskModule):
    """z̄ = z / ‖z‖ + r, with r = shared[name of the class] + own[task, label], both zero at the start.

    z is normalised first, so that a residual and its learning rate mean the same on every base model; logits are
    cosines, so that nothing else changes. The shared part has a row for each class *name*: tasks with different
    classes share what they have in common, and a task that is added starts with what the others know of its classes.

    Attributes:
        shared_rows: `[K, D]`, a row per name of a class, in the order in which the tasks name them first.
        own_rows: `[N, C, D]`, C the largest number of classes of a task.
        row_of: name of a class -> its row among the shared ones.
        rows_of_labels: `[N, C]` the same by label; -1 beyond a task's classes.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config, width = start.config, start.sizes.projection
        tasks = list(config.tasks.values())
        most = max(map(len, tasks))
        self.row_of = {name: row for row, name in enumerate(dict.fromkeys(name for names in tasks for name in names))}
        rows = [[self.row_of[name] for name in names] + [-1] * (most - len(names)) for names in tasks]
        self.register_buffer("rows_of_labels", torch.tensor(rows, device=start.like.device), persistent=False)
        if config.class_residual in ("shared", "both"):
            self.share("shared_rows", start.zeros(len(self.row_of), width))
        if config.class_residual in ("task", "both"):
            self.own("own_rows", start.zeros(start.num_tasks, most, width))

    def forward(self) -> Tensor:
        """Residuals as each task sees them, `[N, C, D]`; zero beyond a task's classes."""
        tensors = self.by_task()
        shared, own = tensors.get("shared_rows"), tensors.get("own_rows")
        parts = [] if own is None else [own]
        if shared is not None:
            rows = self.rows_of_labels.clamp(min=0)[..., None].expand(-1, -1, shared.shape[-1])
            parts.append(shared.expand(self.num_tasks, -1, -1).gather(1, rows))
        return sum(parts).masked_fill((self.rows_of_labels < 0)[..., None], 0)

    def of_names(self, task: int, labels: dict[str, int], names: Sequence[str]) -> Tensor:
        """Residuals `[C', D]` of any classes under a task: what it knows of a name, else what all know, else zero.

        `labels` are those of the task's own class names.
        """
        known, shared = self()[task], self.by_task().get("shared_rows")
        rows = []
        for name in names:
            if name in labels:
                rows.append(known[labels[name]])
            elif shared is not None and name in self.row_of:
                rows.append(shared[min(task, len(shared) - 1), self.row_of[name]])
            else:
                rows.append(torch.zeros_like(known[0]))
        return torch.stack(rows)

    def shared_gradients(self, gradients: Tensor) -> Tensor:
        """Each task's gradient with respect to what tasks share `[N, P]`, from those by label `[N, C, D]` (Eq. 5)."""
        tasks, _, width = gradients.shape
        if not self.shared():
            return gradients.new_zeros(tasks, 0)
        rows = self.rows_of_labels.remainder(len(self.row_of) + 1)[..., None].expand(-1, -1, width)
        by_row = gradients.new_zeros(tasks, len(self.row_of) + 1, width).scatter_add(1, rows, gradients)
        return by_row[:, :-1].flatten(1)

    def centre(self, _name: str, weights: Tensor) -> Tensor:
        """Zero: own rows are differences from what tasks share, and those of one label may be of other classes."""
        return weights.new_zeros(())

    def append(self, other: Self, copied_from: int | None = None) -> None:
        """As the base's; new names, and more classes than any task had, start at zero."""
        self.row_of, self.rows_of_labels = other.row_of, other.rows_of_labels.to(self.rows_of_labels)
        for name, like in other.named_parameters(recurse=False):
            for holder, key in ((self, name), (self.rows, name)):
                held = holder._parameters.get(key)
                if held is not None:
                    grown = F.pad(held.detach(), (0, 0, 0, like.shape[-2] - held.shape[-2]))
                    holder.register_parameter(key, nn.Parameter(grown, requires_grad=held.requires_grad))
        super().append(other, copied_from)


def with_residual(class_embeds: Tensor, residual: Tensor) -> Tensor:
    """z / ‖z‖ + r, both `[..., C, D]`."""
    precise = torch.promote_types(class_embeds.dtype, residual.dtype)
    return F.normalize(class_embeds.to(precise), dim=-1) + residual
