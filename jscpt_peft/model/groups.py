"""`JSCPTConfig.groups`: which tasks share a prompt, in disjoint groups (MmAP) or in a tree of groups (HiPro)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jscpt_peft.choices import nearest
from jscpt_peft.methods import METHODS
from jscpt_peft.settings import check_setting

from .prompts import PROMPT_SOURCES

if TYPE_CHECKING:
    from .config import JSCPTConfig

EVERYONE = "all"


def checked_groups(config: JSCPTConfig) -> dict[str, str | list[str]] | None:
    """The groups in the order of the tasks; where none are given and the prompt source has them, one of all tasks.

    Raises:
        ValueError: the groups do not cover the tasks, name others, are no tree, or belong to no such prompts.
    """
    groups, tasks = config.groups, config.tasks
    if groups is not None:
        check_grouping(groups, config.prompts, config.single_task)
    kind = PROMPT_SOURCES[config.prompts].grouping
    if kind is None or config.single_task:
        return None
    if groups is None:
        return {task: EVERYONE if kind == "group" else [EVERYONE] for task in tasks}
    for task in groups:
        if task not in tasks:
            raise ValueError(f"`groups` names {task!r}, none of `tasks` {list(tasks)}.{nearest(task, tasks)}")
    missing = [task for task in tasks if task not in groups]
    if missing:
        raise ValueError(f"`groups` says nothing of {missing}: give every task its group.")
    for task, group in groups.items():
        _check_group(task, group, kind)
    if kind == "tree":
        _check_tree(groups)
    return {task: groups[task] if kind == "group" else list(groups[task]) for task in tasks}


def check_grouping(groups: Any, prompts: str, single_task: bool) -> None:
    """Raises a `ValueError` where such prompts have no groups."""
    kind = PROMPT_SOURCES[prompts].grouping
    remedy = f"choose method {' or '.join(map(repr, _methods_with_groups()))}"
    if kind is not None:
        remedy = "`single_task`, which lets every task learn alone"
    if kind is None or single_task:
        raise ValueError(f"`groups` is {groups!r}, but prompts={prompts!r} has none here: leave it out, or {remedy}.")


def grown_groups(
    config: JSCPTConfig, name: str, group: str | list[str] | None, init_from: str | None
) -> dict[str, str | list[str]] | None:
    """The groups of a configuration with the task `name` more; it joins `group`, that of `init_from`, or the only one.

    Raises:
        ValueError: there are several groups and none is named, or one is named that is not there: the parameters of a
            new one would not be the new task's own.
    """
    check_setting("group", group, str | list[str] | None)
    if config.groups is None:
        if group is not None:
            raise ValueError(f"`group` is {group!r}, but the adapter has no groups of tasks: leave it out.")
        return None
    known = list({str(each): each for each in config.groups.values()}.values())
    if group is None and init_from is None and len(known) > 1:
        raise ValueError(f"`group` is missing: give the one that {name!r} joins, as one of {known}.")
    if group is None:
        group = known[0] if init_from is None else config.groups[init_from]
    nodes = {node for each in known for node in _nodes(each)}
    for node in _nodes(group):
        if node not in nodes:
            close = nearest(str(node), nodes)
            raise ValueError(f"`group` is {group!r}: a new task joins what is there, one of {known}.{close}")
    return {**config.groups, name: group}


def path_length(config: JSCPTConfig) -> int:
    """The number of prompts that each task sees and may share with others: of all tasks, its group, or nodes."""
    if config.groups is None:
        return 0 if PROMPT_SOURCES[config.prompts].grouping else 1
    return max(len(_nodes(group)) for group in config.groups.values())


def _methods_with_groups() -> list[str]:
    sources = {name: PROMPT_SOURCES.get(method.structure.get("prompts", "")) for name, method in METHODS.items()}
    return [name for name, source in sources.items() if source is not None and source.grouping]


def _nodes(group: Any) -> list[str]:
    return list(group) if isinstance(group, list | tuple) else [group]


def _check_group(task: str, group: Any, kind: str) -> None:
    named = all(isinstance(node, str) and node.strip() for node in _nodes(group)) and _nodes(group)
    if not named or isinstance(group, str) != (kind == "group"):
        words = "the name of a group" if kind == "group" else "the nodes from the root on, such as ['all', 'drawn']"
        raise ValueError(f"`groups[{task!r}]` is {group!r}: give {words}.")


def _check_tree(groups: dict[str, list[str]]) -> None:
    parents: dict[str, tuple[str | None, str]] = {}
    root = None
    for task, path in groups.items():
        root = root or path[0]
        if path[0] != root:
            raise ValueError(f"`groups` is no tree: it has two roots, {root!r} and, for {task!r}, {path[0]!r}.")
        for parent, node in zip([None, *path], path, strict=False):
            known, other = parents.setdefault(node, (parent, task))
            if known != parent:
                raise ValueError(
                    f"`groups` is no tree: node {node!r} is below {known!r} for {other!r} and below {parent!r} for "
                    f"{task!r}. Give it one place, or two names."
                )
