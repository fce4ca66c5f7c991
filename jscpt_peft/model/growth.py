"""A further task on a trained adapter, and training it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import CLIPConfig

from jscpt_peft.choices import alike

from .class_tokens import check_token_ids, class_token_ids
from .config import JSCPTConfig
from .config_checks import check_class_names, check_task_name
from .groups import grown_groups
from .task_context import task_index

if TYPE_CHECKING:
    from .tuner import JSCPTModel


def add_task(
    model: JSCPTModel,
    name: str,
    class_names: Sequence[str],
    token_ids: Sequence | None,
    init_from: str | None,
    class_template: str | list[str] | None,
    group: str | list[str] | None = None,
) -> None:
    """Adds a task to the active adapter, or changes nothing; arguments and errors as for `JSCPTModel.add_task`."""
    source = None if init_from is None else task_index(init_from, model.task_names, "init_from")
    adapter = model.task_adapter
    if source is not None and not adapter.prompts.has_own_parameters:
        raise ValueError(
            f"`init_from` is {init_from!r}, but the adapter's tasks have no prompts of their own "
            f"(`num_task_tokens` is {model.active_jscpt_config.num_task_tokens}): leave it out."
        )
    # A configuration of its own: the user may have made another adapter with the same object.
    config, base = model.active_jscpt_config, model.model.config
    groups = grown_groups(config, name, group, init_from)
    config = grown_config(config, base, name, class_names, token_ids, class_template, groups)
    added = model.start_adapter(config, num_tasks=1, added_task=name)  # checks that the texts fit
    # What can fail is done.
    adapter.append(added, source)
    model.peft_config[model.active_adapter_name] = config
    for layer in model.layers:
        layer.update_layer(model.active_adapter_name, config)
    model.class_features.forget(model.active_adapter_name)


def grown_config(
    config: JSCPTConfig,
    base: CLIPConfig,
    name: str,
    class_names: Sequence[str],
    token_ids: Sequence | None,
    class_template: str | list[str] | None,
    groups: dict[str, str | list[str]] | None = None,
) -> JSCPTConfig:
    """The configuration with one task more, the last one.

    Raises:
        ValueError: as `JSCPTModel.add_task`.
    """
    check_task_name("`name`", name)
    if name in config.tasks or alike([*config.tasks, name]):
        raise ValueError(
            f"`name` is {name!r}: give a name that looks like none of the adapter's tasks {list(config.tasks)}."
        )
    check_class_names("`class_names`", class_names)
    names = list(class_names)
    template = config.class_template
    if class_template is not None or isinstance(template, dict):
        if class_template is None:
            raise ValueError(
                f"`class_template` is missing: the adapter has a template per task, {template}; give the new task's."
            )
        template = {**{task: config.templates(task) for task in config.tasks}, name: class_template}
    fields = {"tasks": {**config.tasks, name: names}, "task_order": [*config.task_order, name]}
    grown = replace(config, **fields, class_template=template, class_token_ids=None, groups=groups)
    ids = class_token_ids(grown, base, name, names) if token_ids is None else list(token_ids)
    grown = replace(grown, class_token_ids={**config.class_token_ids, name: ids})
    check_token_ids(grown, base)
    return grown


def train_only(model: JSCPTModel, task: str | None) -> None:
    """Trains one task's own parameters alone; as `JSCPTModel.train_only`."""
    position = None if task is None else task_index(task, model.task_names)
    if task is not None and not model.task_adapter.has_own_parameters:
        raise ValueError(
            f"`task` {task!r} has no parameters of its own: an adapter with `num_task_tokens` = 0, and without masks "
            "and MLPs per task, can only be trained as a whole."
        )
    model.task_adapter.train_only(position)
