"""Templates of class texts that belong to a task set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jscpt_peft.data import TaskSet

TEMPLATES = ("own", "ensemble")
# Seven of CLIP's templates for ImageNet, which its authors found to do well on many data sets.
GENERAL = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def templates_of(task_set: TaskSet, kind: str) -> dict[str, str | list[str]]:
    """Task -> its own template, or with `kind="ensemble"` also `GENERAL`, whose class features are averaged."""
    if kind == "own":
        return {task.name: task.template for task in task_set}
    return {task.name: [task.template, *GENERAL] for task in task_set}


def with_templates(arguments: Any, task_set: TaskSet) -> Any:
    """`ModelArguments` whose `class_template` is what `templates` asks for."""
    if arguments.templates is None:
        return arguments
    return replace(arguments, class_template=templates_of(task_set, arguments.templates), templates=None)
