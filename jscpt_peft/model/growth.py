"""A further task on a trained adapter, and training it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import CLIPConfig

from .class_tokens import check_token_ids, class_token_ids
from .config import JSCPTConfig
from .routing import task_index
from .task_stack import TaskStack

if TYPE_CHECKING:
    from .tuner import JSCPTModel


def add_task(
    model: JSCPTModel,
    name: str,
    class_names: Sequence[str],
    token_ids: Sequence[Sequence[int]] | None,
    init_from: str | None,
) -> None:
    """Adds a task to the active adapter; arguments and errors as for `JSCPTModel.add_task`."""
    source = None if init_from is None else task_index(init_from, model.task_names, "init_from")
    old = model.active_jscpt_config
    if source is not None and not (old.num_task_tokens and old.prompted_towers):
        raise ValueError(
            f"`init_from` is {init_from!r}, but the adapter's tasks have no prompts of their own "
            f"(`num_task_tokens` is {old.num_task_tokens}): leave it out."
        )
    # A configuration of its own: the user may have made another adapter with the same object.
    config = grown_config(old, model.model.config, name, class_names, token_ids)
    adapter = model.vision_tower.active_name
    model.peft_config[adapter] = config
    for layer in (model.vision_tower, model.text_tower, model.selection):
        layer.add_task(adapter, config, source)
    model.classes.forget(adapter)


def grown_config(
    config: JSCPTConfig,
    clip_config: CLIPConfig,
    name: str,
    class_names: Sequence[str],
    token_ids: Sequence[Sequence[int]] | None,
) -> JSCPTConfig:
    """The configuration with one task more, the last one.

    Raises:
        ValueError: as `JSCPTModel.add_task`.
    """
    if not isinstance(name, str) or not name or name in config.tasks:
        raise ValueError(f"`name` is {name!r}: give a name that none of the adapter's tasks {list(config.tasks)} has.")
    if isinstance(class_names, str):
        raise ValueError(f"`class_names` is the text {class_names!r}: give a list of names.")
    class_names = list(class_names)
    if token_ids is None:
        token_ids = class_token_ids(config, clip_config, class_names)
    grown = replace(
        config,
        tasks={**config.tasks, name: class_names},
        task_order=[*config.task_order, name],
        class_token_ids={**config.class_token_ids, name: [list(ids) for ids in token_ids]},
    )
    check_token_ids(grown, clip_config)
    return grown


def train_only(model: JSCPTModel, task: str | None) -> None:
    """Trains one task's own parameters alone; as `JSCPTModel.train_only`."""
    position = None if task is None else task_index(task, model.task_names)
    stacks = _stacks(model)
    if task is not None and not any(stack.has_own_parameters for stack in stacks):
        raise ValueError(
            f"`task` {task!r} has no parameters of its own: an adapter with `num_task_tokens` = 0, and without masks "
            "and MLPs a task, can only be trained as a whole."
        )
    for stack in stacks:
        stack.train_only(position)


def trained_task(model: JSCPTModel) -> str | None:
    """The task that is trained alone in the active adapter, or `None`."""
    positions = {stack.trained for stack in _stacks(model)} - {None}
    return model.task_names[positions.pop()] if positions else None


def _stacks(model: JSCPTModel) -> list[TaskStack]:
    """What holds the active adapter's parameters."""
    layers = (model.vision_tower, model.text_tower, model.selection)
    return [stack for layer in layers for stack in layer.task_stacks(layer.active_name)]
