"""Which task is meant, and what one thread does with a model that other threads use too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from jscpt_peft.choices import nearest

from .context_variables import set_within
from .task_rows import TaskRows

_deterministic: ContextVar[bool] = ContextVar("deterministic", default=False)
_disabled: ContextVar[tuple] = ContextVar("disabled", default=())


def deterministic() -> AbstractContextManager[None]:
    """Within, this thread's passes drop nothing out, whatever the modules' modes.

    `model.eval()` would change the model under other threads that use it.
    """
    return set_within(_deterministic, True)


@torch.compiler.assume_constant_result  # a compiled step is made and used in the same context
def is_deterministic() -> bool:
    """Whether `deterministic` is open in this thread."""
    return _deterministic.get()


@torch.compiler.assume_constant_result
def _disabled_contexts() -> tuple:
    return _disabled.get()


def task_index(name: str, task_names: Sequence[str], argument: str = "task") -> int:
    """Position of the task `name`; a `ValueError`, which calls it `argument`, with the nearest name if it is none."""
    if name in task_names:
        return task_names.index(name)
    raise ValueError(
        f"`{argument}` {name!r} is not one of the adapter's tasks {list(task_names)}.{nearest(name, task_names)}"
    )


def first_of_each_task(task_ids: Tensor, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Which tasks occur in `task_ids` `[B]`, bool `[N]`, and where each does first, `[N]`."""
    of_task = task_ids == torch.arange(num_tasks, device=task_ids.device)[:, None]
    return of_task.any(1), of_task.int().argmax(1)


class TaskContext:
    """What the wrapped layers of one model share.

    Attributes:
        task: name of the task chosen by `set_task`, or `None`.
        adapters: adapter name -> `TaskAdapter`; held, as a module, by the layer that PEFT finds them in.
    """

    def __init__(self) -> None:
        self.task: str | None = None
        self.adapters = nn.ModuleDict()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within, this thread sees the base model alone."""
        with set_within(_disabled, (*_disabled.get(), self)):
            yield

    @property
    def is_disabled(self) -> bool:
        """Whether `disabled` is open in this thread."""
        return any(context is self for context in _disabled_contexts())

    def resolve(
        self,
        task_ids: TaskRows | Tensor | Sequence[int] | int | None,
        rows: int,
        task_names: Sequence[str],
        device: torch.device,
    ) -> TaskRows:
        """Tasks of `rows` images or texts.

        Args:
            task_ids: one id for all rows, one id a row, `None` for the task of `set_task`, or what this gives.
            rows: their number.
            task_names: the active adapter's tasks.
            device: where the ids are needed.

        Raises:
            ValueError: no task is known, an id is out of range, or the numbers of ids and rows differ.
        """
        if isinstance(task_ids, TaskRows):
            return task_ids.checked(rows, task_names)
        if task_ids is None:
            task_ids = self._default_task(task_names)
        try:
            ids = torch.as_tensor(task_ids, device=device).reshape(-1)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`task_ids` is {task_ids!r}: give whole numbers, positions in {list(task_names)}."
            ) from error
        if ids.numel() == 1:
            ids = ids.expand(rows)
        return TaskRows.of(ids).checked(rows, task_names)

    def _default_task(self, task_names: Sequence[str]) -> int:
        if self.task is not None:
            return task_index(self.task, task_names)
        if len(task_names) == 1:
            return 0
        raise ValueError(
            "`task_ids` is missing and no task is set: pass `task_ids=` (for `predict`, `task=`) or call "
            f"`set_task(name)` with one of {list(task_names)}."
        )
