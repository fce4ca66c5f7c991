"""Arguments of the recipes that make the model: the base, the method, and the fields of `JSCPTConfig`."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields, make_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from class_templates import TEMPLATES
from outside_methods import OUTSIDE
from peft import PeftConfig
from task_data import ASSETS

from jscpt_peft import JSCPTConfig
from jscpt_peft.choices import check_choice
from jscpt_peft.methods import HYPERPARAMETERS, METHODS, method_fields, training_options
from jscpt_peft.model.groups import check_grouping
from jscpt_peft.model.prompts import PROMPT_SOURCES
from jscpt_peft.settings import Name, OneOf, PositiveInt, annotations_of, check_setting, setting
from jscpt_peft.training.arguments import AUTO

BUNDLED = ("tiny-clip", "icon-clip")  # the small CLIPs in `ASSETS`; the first one is the default


@cache
def config_fields(config: type[PeftConfig]) -> tuple[tuple[str, Any, Field], ...]:
    """Name, type and field of all that a command line can say of a configuration: numbers, words and choices.

    Where a field takes a mapping or a list as well, configuration files can give it.
    """
    inherited, types = {each.name for each in fields(PeftConfig)}, get_type_hints(config)
    return tuple(
        (each.name, kind, setting(each.default, each.metadata.get("help", "")))
        for each in fields(config)
        if (kind := _plain(types[each.name])) is not NoneType
        and each.name not in inherited
        and each.metadata.get("command_line", True)
    )


def _plain(annotation: Any) -> Any:
    """What a word can be of an annotation: `str | None` of `str | list[str] | None`; `None` where it is nothing."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = [kind for kind in kinds if kind in (str, int, float, bool, NoneType) or get_origin(kind) is Literal]
    return Union[*plain] if plain else NoneType


@dataclass
class OwnArguments:
    """Those beside the fields of `JSCPTConfig`."""

    model_name_or_path: Name | None = setting(
        None, f"A CLIPModel: Hub id or folder, or {' or '.join(BUNDLED)} of the recipes. Default: {BUNDLED[0]}."
    )
    method: Annotated[str, OneOf((*METHODS, *OUTSIDE, AUTO))] | None = setting(
        None,
        f"{', '.join(METHODS)}; or, for comparison, {' or '.join(OUTSIDE)}; auto: by the tasks, and says why. "
        "Default: JSCPT, as the arguments set it.",
    )
    lora_rank: PositiveInt = setting(2, "Rank of --method clip_lora.")
    hyperparameters: Annotated[str, OneOf(HYPERPARAMETERS)] = setting(
        "paper", f"Whose --method takes: {' or '.join(HYPERPARAMETERS)}."
    )
    templates: Annotated[str, OneOf(TEMPLATES)] | None = setting(
        None,
        "Texts of classes: own (each task's own template, as CoOp's of its ten data sets), or ensemble (the means of "
        "that and seven general ones). Default: --class_template for all.",
    )
    groups: str | None = setting(
        None,
        "mmap, hipro: which tasks share prompts, a YAML or JSON file of task: group, or task: [nodes from the root]; "
        "auto: by the tasks' gradients, as recipes/group_tasks.py. Default: all tasks.",
    )
    num_groups: PositiveInt | None = setting(None, "auto, mmap: number of groups. Default: by the distances.")
    tree_levels: PositiveInt | None = setting(None, "auto, hipro: nodes above a task, at most. Default: 2.")
    warm_up_batches: PositiveInt = setting(16, "auto: batches of all tasks that the gradients come from.")


OWN_ARGUMENTS = [(each.name, annotations_of(OwnArguments)[each.name], each) for each in fields(OwnArguments)]
# Hyperparameters of training that a task set's own file may set.
TUNED = {"learning_rate", "optim", "weight_decay", "max_steps", "num_train_epochs", "per_device_train_batch_size"}
GROUPS = str | annotations_of(JSCPTConfig)["groups"]


def _check_model(self: ModelArguments) -> None:
    for name, annotation, _ in OWN_ARGUMENTS:
        check_setting(name, getattr(self, name), GROUPS if name == "groups" else annotation)
    if self.method == "zero_shot":
        raise ValueError("`method` 'zero_shot' has nothing to train: use recipes/evaluate.py --method zero_shot.")
    if self.method is None and self.hyperparameters != "paper":
        raise ValueError(
            f"`hyperparameters` {self.hyperparameters!r} are those of a `method`: name one, or leave it out."
        )
    if self.method == AUTO:  # these arguments are parsed again when the tasks are known
        return
    check_outside(self)
    if self.method in OUTSIDE:
        return
    if self.groups is not None:
        check_grouping(self.groups, self.prompts, self.single_task)
    if self.templates is not None and self.class_template != JSCPTConfig.class_template:
        raise ValueError(
            f"`templates` is {self.templates!r} and `class_template` {self.class_template!r}: give one of the two."
        )
    check_made_groups(self, made=self.groups in (None, AUTO))  # with `None` by recipes/group_tasks.py
    config_of_any_tasks(self)  # it checks the rest


def check_made_groups(arguments: ModelArguments, made: bool) -> None:
    """Raises a `ValueError` where an option of making groups is given, and none of its kind are made."""
    kind = PROMPT_SOURCES[arguments.prompts].grouping
    for name, of, method in (("num_groups", "group", "mmap"), ("tree_levels", "tree", "hipro")):
        value = getattr(arguments, name)
        if value is not None and not (made and kind == of):
            raise ValueError(f"`{name}` is {value}, which is for `groups` 'auto' of method {method}: leave it out.")


def check_outside(arguments: ModelArguments) -> None:
    """Raises a `ValueError` where an option is LoRA's, or an adapter's, and the method is another kind."""
    every = {name: each.default for name, _, each in (*config_fields(JSCPTConfig), *OWN_ARGUMENTS)}
    of_lora, of_all = {"lora_rank"}, {"model_name_or_path", "method", "hyperparameters"}
    known = {"clip_lora": of_lora | of_all, "linear_probe": of_all}.get(arguments.method, every.keys() - of_lora)
    for name in sorted(every.keys() - known):
        value = getattr(arguments, name)
        if value != every[name]:
            others = ["clip_lora"] if name in of_lora else METHODS
            raise ValueError(
                f"`{name}` is {value!r}, but method {arguments.method!r} does not know it: leave it out, or choose "
                f"{' or '.join(map(repr, others))}."
            )


ModelArguments = make_dataclass(
    "ModelArguments",
    [*OWN_ARGUMENTS, *config_fields(JSCPTConfig)],
    namespace={
        "__doc__": "The base model, and the fields of `JSCPTConfig`.",
        "_argument_group_name": "model",
        "__post_init__": _check_model,
    },
)


def model_config(
    arguments: ModelArguments,
    tasks: dict[str, list[str]],
    source: str,
    seed: int,
    groups: dict[str, Any] | None = None,
) -> JSCPTConfig:
    """The adapter's configuration: the one place where arguments become a `JSCPTConfig`.

    `groups` are those of the file that the arguments name, or of the tasks' gradients.

    Raises:
        ValueError: a value is out of its range, or would make another method than the one that is named.
    """
    options = {name: getattr(arguments, name) for name, *_ in config_fields(JSCPTConfig)}
    options |= {"tasks": tasks, "tokenizer_name_or_path": source, "init_seed": seed}
    options["groups"] = groups if isinstance(arguments.groups, str) else arguments.groups
    if arguments.method is None:
        return JSCPTConfig(**options)
    return JSCPTConfig.for_method(arguments.method, hyperparameters=arguments.hyperparameters, **options)


def config_of_any_tasks(arguments: ModelArguments) -> JSCPTConfig:
    """`model_config` before the tasks are known; errors as there."""
    of_tasks = next(
        (each for each in (arguments.class_template, arguments.groups) if isinstance(each, dict)), ["task"]
    )
    return model_config(arguments, {task: ["class"] for task in of_tasks}, source="", seed=0)


def with_method(own: dict[str, Any], name: str, hyperparameters: str = "paper") -> dict[str, Any]:
    """A task set's own settings together with a method's.

    What makes the method stands over them. The paper's hyperparameters are those of ViT-B/16, so that a task set's own
    come first. Where the method's original ones are asked for, the task set's count for nothing.
    """
    check_choice("method", name, (*METHODS, *OUTSIDE))
    if name in OUTSIDE:
        of_adapters = {each for each, *_ in (*config_fields(JSCPTConfig), *OWN_ARGUMENTS)} - {"model_name_or_path"}
        of_all = {each: value for each, value in own.items() if each not in of_adapters}
        return {**of_all, **OUTSIDE[name][hyperparameters]}
    method = {**method_fields(name, hyperparameters), **training_options(name, hyperparameters)}
    if hyperparameters == "original":
        tuned = {each for each, *_ in config_fields(JSCPTConfig)} | TUNED
        return {**{each: value for each, value in own.items() if each not in tuned}, **method}
    return {**method, **own, **METHODS[name].structure, **METHODS[name].training}


def base_source(name: str | None) -> str:
    """Where a base model is: in `ASSETS` if it is one of `BUNDLED` (default: the first), else as it is named."""
    name = BUNDLED[0] if name is None else name
    return str(ASSETS / name) if name in BUNDLED else name
