"""A further task on a trained adapter, and training it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import CLIPConfig

from jscpt_peft.choices import alike

from .class_tokens import check_token_ids, class_token_ids
from .config import JSCPTConfig
from .config_checks import check_class_names, check_task_name
from .groups import grown_groups
from .injection import JSCPTInjection
from .task_context import task_index


class GrowingModel(JSCPTInjection):
    """A model whose active adapter takes further tasks, and trains one alone."""

    def add_task(
        self,
        name: str,
        class_names: Sequence[str],
        class_token_ids: Sequence[Any] | None = None,
        init_from: str | None = None,
        class_template: str | list[str] | None = None,
        group: str | list[str] | None = None,
    ) -> None:
        """Adds a task to the active adapter, the last one in the order of `task_ids`. Make trainers afterwards.

        The other tasks stay as they are. The new one's mask and MLPs (Eq. 2) are at their start; its prompts are
        N(0, `prompt_init_std`²), a function of `init_seed` and `name`.

        Args:
            name: of the new task.
            class_names: its classes, in the order of the labels.
            class_token_ids: one list per class, as in `JSCPTConfig`; `None`: the class texts are tokenised.
            init_from: a task whose prompts the new one starts from.
            class_template: the new task's template or templates; `None`: that of all tasks.
            group: with prompts of groups, which one the new task joins, as in `JSCPTConfig.groups`; `None`: that of
                `init_from`, or the only one.

        Raises:
            ValueError: `name` is taken, a class name occurs twice or is too long, `init_from` has no prompts,
                `class_template` or `group` is missing, or there is no such group. Nothing has changed then.
        """
        source = None if init_from is None else task_index(init_from, self.task_names, "init_from")
        adapter, config = self.task_adapter, self.active_jscpt_config
        if source is not None and not adapter.prompts.has_own_parameters:
            raise ValueError(
                f"`init_from` is {init_from!r}, but the adapter's tasks have no prompts of their own "
                f"(`num_task_tokens` is {config.num_task_tokens}): leave it out."
            )
        # A configuration of its own: the user may have made another adapter with the same object.
        groups = grown_groups(config, name, group, init_from)
        config = grown_config(config, self.model.config, name, class_names, class_token_ids, class_template, groups)
        added = self.start_adapter(config, num_tasks=1, added_task=name)  # checks that the texts fit
        # What can fail is done.
        adapter.append(added, source)
        self.peft_config[self.active_adapter_name] = config
        for layer in self.layers:
            layer.update_layer(self.active_adapter_name, config)
        self.class_features.forget(self.active_adapter_name)

    def train_only(self, task: str | None) -> None:
        """Gradients go to one task's own parameters alone; `None`: to all of the active adapter's.

        Whatever the optimizer does, the shared parameters and those of other tasks stay as they are, bit for bit.
        Make optimizers and trainers afterwards.

        Raises:
            ValueError: the active adapter has no such task, or no parameters that are a task's own.
        """
        position = None if task is None else task_index(task, self.task_names)
        if task is not None and not self.task_adapter.has_own_parameters:
            raise ValueError(
                f"`task` {task!r} has no parameters of its own: an adapter with `num_task_tokens` = 0, and without "
                "masks and MLPs per task, can only be trained as a whole."
            )
        self.task_adapter.train_only(position)

    @property
    def trained_task(self) -> str | None:
        """The task of `train_only`."""
        position = self.task_adapter.trained
        return None if position is None else self.task_names[position]


def grown_config(
    config: JSCPTConfig,
    base: CLIPConfig,
    name: str,
    class_names: Sequence[str],
    token_ids: Sequence | None,
    class_template: str | list[str] | None,
    groups: dict[str, str | list[str]] | None,
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
