"""What is evaluated: a trained adapter, or zero-shot CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from adapter import adapter_config, load_adapter
from arguments import default_model
from base_model import load_clip
from class_templates import TEMPLATES, templates_of
from model_arguments import base_source
from peft import PeftModel, get_peft_model
from transformers import CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.choices import nearest
from jscpt_peft.data import TaskSet
from jscpt_peft.data.task import first_difference
from jscpt_peft.settings import Name, OneOf, check_settings, setting

METHODS = ("adapter", "zero_shot")


@dataclass
class EvaluatedModelArguments:
    """What is evaluated."""

    _argument_group_name: ClassVar[str] = "what is evaluated"
    adapter: Name | None = setting(None, "Folder or Hub id of a trained adapter.")
    revision: Name | None = setting(None, "Branch, tag or commit of the adapter on the Hub.")
    method: Annotated[str, OneOf(METHODS)] = setting(
        "adapter", "adapter, or zero_shot: the base model under the tasks' templates."
    )
    templates: Annotated[str, OneOf(TEMPLATES)] = setting(
        "own", "For zero_shot: own (each task's own template), or ensemble (the means of that and seven general ones)."
    )
    model_name_or_path: Name | None = setting(
        None,
        "A CLIPModel: Hub id or folder. Default: the one that the adapter was trained on; for zero_shot the one that "
        "the task set is trained with, or the small CLIP of the recipes.",
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, and where its base came from."""

    model: PeftModel
    source: str
    task_ids: list[int]  # [N] where the task set's tasks stand among the model's


def check_evaluated(arguments: EvaluatedModelArguments) -> None:
    """Raises a ValueError where the arguments do not say what to evaluate."""
    if arguments.method == "adapter" and arguments.adapter is None:
        raise ValueError("`adapter` is missing: name the folder or Hub id of one, or pass --method zero_shot.")
    if arguments.method == "adapter" and arguments.templates != "own":
        raise ValueError(
            f"`templates` is {arguments.templates!r}, but an adapter has its own texts: leave it out, or pass "
            "--method zero_shot."
        )
    if arguments.method == "zero_shot" and arguments.adapter is not None:
        raise ValueError(
            f"`adapter` is {arguments.adapter!r}, but --method zero_shot has none: leave out one of them."
        )


def load_evaluated(arguments: EvaluatedModelArguments, task_set: TaskSet, any_classes: bool = False) -> EvaluatedModel:
    """The model that the arguments name; with `any_classes` it need not have been trained for those of the tasks.

    Raises:
        ValueError: there is no such adapter, or it was trained for other tasks or classes.
    """
    if arguments.method == "zero_shot":
        named = arguments.model_name_or_path
        source = default_model(task_set.name) if named is None else base_source(named)
        clip = load_clip(source)
        return EvaluatedModel(
            zero_shot_model(clip, source, task_set, arguments.templates), source, list(range(len(task_set)))
        )
    config = adapter_config(arguments.adapter, arguments.revision)
    task_ids = known_tasks(arguments.adapter, config.tasks, task_set, any_classes)
    model, source = load_adapter(config, arguments.adapter, arguments.revision, arguments.model_name_or_path)
    return EvaluatedModel(model, source, task_ids)


def zero_shot_model(clip: CLIPModel, source: str, task_set: TaskSet, templates: str = "own") -> PeftModel:
    """Zero-shot CLIP as an adapted model, with `templates` as for `templates_of`; the tokenizer is that of `source`.

    `model.unload()` gives `clip` back as it was.
    """
    options = {"class_template": templates_of(task_set, templates), "tokenizer_name_or_path": source}
    return get_peft_model(clip, JSCPTConfig.for_method("zero_shot", tasks=task_set.class_names, **options))


def known_tasks(adapter: str, known: dict[str, list[str]], task_set: TaskSet, any_classes: bool = False) -> list[int]:
    """Where the task set's tasks stand among those of an adapter, found by name, `[N]`.

    Raises:
        ValueError: the adapter does not know a task, or knows it with other classes or in another order.
    """
    for name, class_names in task_set.class_names.items():
        if name not in known:
            raise ValueError(
                f"`adapter` {adapter} has no task {name!r}: its tasks are {', '.join(known)}.{nearest(name, known)}"
            )
        if not any_classes and class_names != known[name]:
            raise ValueError(
                f"task {name!r} of task set {task_set.name!r} has other classes than `adapter` {adapter} knows, or in "
                f"another order ({first_difference(class_names, known[name])}): evaluate it on the classes it was "
                "trained for, or name others with --classes."
            )
    return [list(known).index(name) for name in task_set.class_names]
