"""Which rows of a batch belong to which tasks, as far as the host knows it: shapes then depend on no tensor's values.

A batch of the trainer's sampler has equally many rows of every task, task after task. What each task has (prompts'
keys and values, class features) is then expanded over its rows, whose backward is a sum, instead of being gathered,
whose backward is a sort; and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import torch
from torch import Tensor


class TaskRows(NamedTuple):
    """The tasks of B rows (images or texts), T of them in use.

    Tasks without a row cost nothing, and change nothing: not even the last bits, which depend on the shapes.

    Attributes:
        ids: `[B]` task of each row.
        tasks: the tasks that occur, ascending.
        each: rows of each of them where these stand in equal blocks, in the order of `tasks`; else `None`.
    """

    ids: Tensor
    tasks: tuple[int, ...]
    each: int | None

    @classmethod
    def of(cls, ids: Tensor) -> Self:
        """Of task ids `[B]`, which are read: one synchronisation where they are on a device."""
        values = ids.tolist()
        tasks = tuple(sorted(set(values)))
        each = len(values) // max(len(tasks), 1)
        in_blocks = bool(tasks) and values == [task for task in tasks for _ in range(each)]
        return cls(ids, tasks, each if in_blocks else None)

    def checked(self, count: int, task_names: Sequence[str]) -> Self:
        """Itself, with whole numbers as ids.

        Raises:
            ValueError: there are not `count` rows, or ids are no positions in `task_names`.
        """
        if len(self.ids) and (self.ids.is_floating_point() or self.ids.dtype == torch.bool):
            raise ValueError(
                f"`task_ids` has dtype {self.ids.dtype}: give whole numbers, positions in {list(task_names)}."
            )
        if len(self.ids) != count:
            raise ValueError(
                f"`task_ids` has {len(self.ids)} entries for {count} rows: give one id for all or one id per row. "
                "Where images and texts differ in number, choose one task with `set_task(name)`."
            )
        if self.tasks and not 0 <= self.tasks[0] <= self.tasks[-1] < len(task_names):
            raise ValueError(
                f"`task_ids` must lie in 0..{len(task_names) - 1} (tasks {list(task_names)}), got values from "
                f"{self.tasks[0]} to {self.tasks[-1]}."
            )
        return self._replace(ids=self.ids.long())

    @classmethod
    def one_task(cls, like: Tensor) -> Self:
        """Rows `[B, ...]` of the same task, whichever number it has."""
        return cls(like.new_zeros(like.shape[0], dtype=torch.long), (0,), like.shape[0])

    def repeated(self, times: int) -> Self:
        """Each row so many times, one after the other."""
        each = None if self.each is None else self.each * times
        return type(self)(self.ids.repeat_interleave(times), self.tasks, each)

    def choose(self, by_task: Tensor) -> Tensor:
        """The tasks in use `[T, ...]` of something by task `[N, ...]`."""
        whole = len(self.tasks) == len(by_task)
        return by_task if whole else by_task.index_select(0, _on_device(self.tasks, self.ids.device))

    def places(self) -> Tensor:
        """Place `[B]` of each row's task among those in use."""
        if self.tasks == tuple(range(len(self.tasks))):
            return self.ids
        return torch.searchsorted(_on_device(self.tasks, self.ids.device), self.ids)

    def spread(self, chosen: Tensor) -> Tensor:
        """What `choose` gave `[T, ...]`, for each row its task's: `[B, ...]`."""
        if self.each is None:
            return chosen[self.places()]
        return chosen.unsqueeze(1).expand(-1, self.each, *chosen.shape[1:]).flatten(0, 1)

    def sums(self, values: Tensor, num_tasks: int) -> Tensor:
        """Sums `[N]` of values `[B]` over each task's rows."""
        if self.each is not None and len(self.tasks) == num_tasks:
            return values.view(num_tasks, self.each).sum(1)
        return values.new_zeros(num_tasks).index_add(0, self.ids, values)


@lru_cache(maxsize=64)
def _on_device(tasks: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept: each copy from the host would wait for the device."""
    with torch.inference_mode(False):  # used in training too, where inference tensors may not take part
        return torch.tensor(tasks, dtype=torch.long, device=device)
