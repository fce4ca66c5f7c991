"""What the tasks, classes and texts of a configuration have to be."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jscpt_peft.choices import alike, printable, visible

from .class_texts import texts_of_class

Templates = str | dict[str, str | list[str]]


def check_tasks(tasks: dict[str, list[str]], task_order: list[str]) -> None:
    """Raises a `ValueError` unless there are tasks with names and classes, each of them once in `task_order`."""
    if not tasks:
        raise ValueError("`tasks` is empty: give a dict of task name -> list of class names.")
    if sorted(task_order) != sorted(tasks):
        raise ValueError(f"`task_order` {task_order} must name each of `tasks` {list(tasks)} once.")
    if twins := alike(tasks):
        raise ValueError(f"`tasks` names {twins[0]!a} and {twins[1]!a}, which look alike: rename one.")
    for task, names in tasks.items():
        check_task_name("a name in `tasks`", task)
        check_class_names(f"`tasks[{task!r}]`", names)


def check_task_name(argument: str, name: str) -> None:
    """Raises a `ValueError` that begins with `argument` unless this can be the name of a task."""
    if not _is_name(name):
        raise ValueError(f"{argument} is {name!r}: a task needs a name, without control characters.")


def check_class_names(argument: str, names: list[str]) -> None:
    """Raises a `ValueError` that begins with `argument` unless these can be the class names of a task."""
    # Of a string the letters would be the classes, and a set has no order.
    if not isinstance(names, list | tuple):
        raise ValueError(f"{argument} is {names!r}: give a list of class names.")
    if not names:
        raise ValueError(f"{argument} has no class names.")
    for name in names:
        if not _is_name(name):
            raise ValueError(f"{argument}: {name!r} is no name of a class; give a string of visible characters.")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{argument} names {repeated} more than once: class names must differ.")
    if twins := alike(names):
        raise ValueError(f"{argument} names {twins[0]!a} and {twins[1]!a}, which look alike: rename one.")


def templates_of(class_template: Templates, task: str) -> list[str]:
    """The templates of a task."""
    given = class_template.get(task, []) if isinstance(class_template, dict) else class_template
    return [given] if isinstance(given, str) else list(given)


def check_templates(class_template: Templates, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` unless every task has templates with one place for the class name."""
    by_task = class_template if isinstance(class_template, dict) else dict.fromkeys(tasks)
    if by_task.keys() != tasks.keys():
        raise ValueError(
            f"`class_template` is for the tasks {sorted(by_task)}: give a template for each of `tasks` {list(tasks)}, "
            "or one for all."
        )
    for task in tasks:
        templates = templates_of(class_template, task)
        if not templates or not all(map(_is_template, templates)):
            raise ValueError(f"`class_template` must contain {{}} for the class name, once, got {class_template!r}.")


def check_texts(class_token_ids: dict[str, list], tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` unless every class of every task has a list of ids for each of its texts."""
    surplus = sorted(set(class_token_ids) - set(tasks))
    if surplus:
        raise ValueError(f"`class_token_ids` names {surplus}, which are not among `tasks` {list(tasks)}.")
    for task, names in tasks.items():
        given = class_token_ids.get(task, ())
        if len(given) != len(names):
            raise ValueError(
                f"`class_token_ids[{task!r}]` has {len(given)} entries for {len(names)} classes: give one list of ids "
                "per class, or leave `class_token_ids` out."
            )
        texts = [texts_of_class(entry) if isinstance(entry, list | tuple) else () for entry in given]
        if not all(each and all(map(_is_text, each)) for each in texts):
            raise ValueError(f"`class_token_ids[{task!r}]` must have a list of whole numbers for every text.")
        if len(set(map(len, texts))) > 1:
            raise ValueError(f"`class_token_ids[{task!r}]` must have equally many texts for every class.")


def _is_name(name: Any) -> bool:
    """Whether this is a string that says something, without what a terminal would obey."""
    return isinstance(name, str) and bool(visible(name)) and printable(name) == name


def _is_template(template: str) -> bool:
    try:
        return "{}" in template and template.format("x") != template.format("y")
    except (AttributeError, IndexError, KeyError, ValueError):  # more than one place, or braces that are none
        return False


def _is_text(ids: Any) -> bool:
    return isinstance(ids, list | tuple) and all(type(each) is int for each in ids)
