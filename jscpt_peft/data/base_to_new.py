"""Base and new classes: training sees the first half of every task's classes, testing both (CoCoOp, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .task import SPLITS, Task, TaskSet, read_column

if TYPE_CHECKING:  # takes seconds to import
    import datasets

SPLITTINGS = ("all", "base_to_new")


def base_classes(task_set: TaskSet) -> TaskSet:
    """The task set with the first half of every task's classes, rounded up as CoOp's followers do.

    Its manifest stays that of all classes.

    Raises:
        ValueError: a task has one class only; or as `Task`, where a half has no images to learn from.
    """
    tasks = []
    for task in task_set:
        names = task.class_names[: _half(task)]
        tables = {split: of_classes(task.split(split), task.class_names, names) for split in SPLITS}
        tasks.append(Task(task.name, names, template=task.template, **tables))
    return replace(task_set, tasks=tuple(tasks))


def new_classes(task_set: TaskSet) -> dict[str, list[str]]:
    """Task -> the other half of its classes."""
    return {task.name: list(task.class_names[_half(task) :]) for task in task_set}


def images_of_classes(task_set: TaskSet, classes: Mapping[str, Sequence[str]]) -> list[datasets.Dataset]:
    """The test images of some classes of each task, their labels places in `classes[task]`."""
    return [of_classes(task.test, task.class_names, classes[task.name]) for task in task_set]


def of_classes(table: datasets.Dataset, class_names: Sequence[str], chosen: Sequence[str]) -> datasets.Dataset:
    """The rows of some classes.

    Args:
        table: rows with a `label`.
        class_names: of these labels.
        chosen: classes in the order of their new labels; names that are none of `class_names` have no rows.
    """
    place = {name: number for number, name in enumerate(chosen)}
    labels = [place.get(class_names[label]) for label in read_column(table, "label")]
    rows = [row for row, label in enumerate(labels) if label is not None]
    # With a format, of shapes' drawing for example, every image would be made for a change of the table.
    plain, form = table.with_format(None), table.format
    plain = plain.remove_columns("label").add_column("label", [-1 if label is None else label for label in labels])
    kept = plain.select(rows)
    kept.set_format(form["type"], form["columns"], form["output_all_columns"], **form["format_kwargs"])
    return kept


def _half(task: Task) -> int:
    if len(task.class_names) < 2:
        raise ValueError(f"task {task.name!r} has one class only, which cannot be split into base and new ones.")
    return (len(task.class_names) + 1) // 2
