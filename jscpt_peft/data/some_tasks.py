"""Some of a task set's tasks: one alone, or two whose influence on each other is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jscpt_peft.choices import check_choice
from jscpt_peft.data.task import SPLITS, Task, TaskSet, changed_rows

if TYPE_CHECKING:  # takes seconds to import
    import datasets


def some_tasks(task_set: TaskSet, names: Sequence[str]) -> TaskSet:
    """The task set with the named tasks alone, in the order of the task set, numbered anew.

    Raises:
        ValueError: there is no such task, a task is named twice, or none is.
    """
    for name in names:
        check_choice("only_tasks", name, list(task_set.class_names))
        if names.count(name) > 1:
            raise ValueError(f"`only_tasks` names {name!r} twice: name each task once.")
    kept = [task for task in task_set if task.name in names]
    manifest = {**task_set.manifest, "tasks": {task.name: task_set.manifest["tasks"][task.name] for task in kept}}
    return replace(task_set, tasks=tuple(map(_numbered, kept, range(len(kept)))), manifest=manifest)


def _numbered(task: Task, task_id: int) -> Task:
    def anew(split: str) -> datasets.Dataset:
        table = task.split(split)
        return changed_rows(table, range(len(table)), task_id=[task_id] * len(table))

    return replace(task, **{split: anew(split) for split in SPLITS})
