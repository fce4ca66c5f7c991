"""Which task does a sample belong to?

`CLIPModel` hands the keyword `task_ids` down to its two towers, but calls `visual_projection` without keywords. The
router is what the tuner's layers share: the task set by `set_task`, and the task ids of the images under way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jscpt_peft.choices import nearest


def task_index(name: str, task_names: Sequence[str], argument: str = "task") -> int:
    """Position of the task `name`; a `ValueError` with the nearest name where there is none.

    Args:
        name: of a task.
        task_names: the adapter's tasks.
        argument: what the message calls `name`.
    """
    if name in task_names:
        return task_names.index(name)
    raise ValueError(
        f"`{argument}` {name!r} is not one of the adapter's tasks {list(task_names)}.{nearest(name, task_names)}"
    )


def tasks_in_use(by_task: torch.Tensor, task_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries of `by_task` `[N, ...]` whose tasks occur in `task_ids` `[B]`, and each sample's place among them `[B]`.

    Tasks without a sample cost nothing then, and change nothing: not even the last bits, which depend on the shapes.
    """
    tasks, rows = task_ids.unique(return_inverse=True)
    return by_task[tasks], rows


class TaskRouter:
    """State shared by the wrapped layers of one model.

    Attributes:
        task: name of the task chosen by `set_task`, or `None`.
        image_task_ids: `[B]` task ids of the images whose features are being projected, or `None` between calls.
    """

    def __init__(self) -> None:
        self.task: str | None = None
        self.image_task_ids: torch.Tensor | None = None

    def resolve(
        self,
        task_ids: torch.Tensor | Sequence[int] | int | None,
        rows: int,
        task_names: list[str],
        device: torch.device,
    ) -> torch.Tensor:
        """Task ids `[rows]` of `rows` images or texts.

        Args:
            task_ids: one id for all rows, one id a row, or `None` for the task of `set_task`.
            rows: number of images or texts.
            task_names: the active adapter's tasks.
            device: where the ids are needed.

        Raises:
            ValueError: no task is known, an id is out of range, or the numbers of ids and rows differ.
        """
        if task_ids is None:
            task_ids = self._default_task(task_names)
        ids = torch.as_tensor(task_ids, dtype=torch.long, device=device).reshape(-1)
        if ids.numel() == 1:
            ids = ids.expand(rows)
        if ids.numel() != rows:
            raise ValueError(
                f"`task_ids` has {ids.numel()} entries for {rows} rows: give one id for all or one id a row. Where "
                "images and texts differ in number, choose one task with `set_task(name)`."
            )
        if rows and not (int(ids.min()) >= 0 and int(ids.max()) < len(task_names)):
            raise ValueError(
                f"`task_ids` must lie in 0..{len(task_names) - 1} (tasks {task_names}), got values from "
                f"{int(ids.min())} to {int(ids.max())}."
            )
        return ids

    def _default_task(self, task_names: list[str]) -> int:
        if self.task is not None:
            return task_index(self.task, task_names)
        if len(task_names) == 1:
            return 0
        raise ValueError(
            "`task_ids` is missing and no task is set: pass `task_ids=` (for `predict`, `task=`) or call "
            f"`set_task(name)` with one of {task_names}."
        )
