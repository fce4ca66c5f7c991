"""Arguments of the recipes: from the command line, or a YAML or JSON file, or both."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import Field, fields, make_dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from class_templates import TEMPLATES
from outside_methods import OUTSIDE
from peft import PeftConfig
from task_data import ASSETS, DataArguments
from transformers import HfArgumentParser

from jscpt_peft import JSCPTConfig
from jscpt_peft.choices import check_choice, nearest
from jscpt_peft.data.benchmarks import TASK_SET_MEMBERS
from jscpt_peft.methods import HYPERPARAMETERS, METHODS, method_fields, training_options
from jscpt_peft.model.groups import check_grouping
from jscpt_peft.model.prompts import PROMPT_SOURCES
from jscpt_peft.reading import one_line, read_json, read_text
from jscpt_peft.settings import Name, OneOf, PositiveInt, annotations_of, check_setting, setting
from jscpt_peft.training.arguments import AUTO, Auto
from jscpt_peft.training.trainer_settings import ANNOTATIONS

CONFIGS = Path(__file__).parent / "configs"
BUNDLED = ("tiny-clip", "icon-clip")  # the small CLIPs in `ASSETS`; the first one is the default

# What --help shows of TrainingArguments beside the arguments that this project adds or sets otherwise.
SHOWN = {
    *("output_dir", "max_steps", "seed", "bf16", "use_cpu", "logging_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end", "resume_from_checkpoint"),
    *("gradient_accumulation_steps", "activation_checkpointing", "weight_decay", "dataloader_num_workers"),
    *("report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
}
HIDDEN = {"remove_unused_columns", "label_names"}  # ours to set, not the user's
EPILOG = "Every other argument of transformers.TrainingArguments works too: --help_all shows them."


def config_fields(config: type[PeftConfig]) -> Iterator[tuple[str, Any, Field]]:
    """Name, type and field of all that a command line can say of a configuration: numbers, words and choices.

    Where a field takes a mapping or a list as well, configuration files can give it.
    """
    inherited, types = {each.name for each in fields(PeftConfig)}, get_type_hints(config)
    for each in fields(config):
        kind = _plain(types[each.name])
        if kind is not NoneType and each.name not in inherited and each.metadata.get("command_line", True):
            yield each.name, kind, setting(each.default, each.metadata.get("help", ""))


def _plain(annotation: Any) -> Any:
    """What a word can be of an annotation: `str | None` of `str | list[str] | None`; `None` where it is nothing."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = [kind for kind in kinds if kind in (str, int, float, bool, NoneType) or get_origin(kind) is Literal]
    return Union[*plain] if plain else NoneType


OWN_ARGUMENTS = [
    (
        "model_name_or_path",
        Name | None,
        setting(
            None, f"A CLIPModel: Hub id or folder, or {' or '.join(BUNDLED)} of the recipes. Default: {BUNDLED[0]}."
        ),
    ),
    (
        "method",
        Annotated[str, OneOf((*METHODS, *OUTSIDE, AUTO))] | None,
        setting(
            None,
            f"{', '.join(METHODS)}; or, for comparison, {' or '.join(OUTSIDE)}; auto: by the tasks, and "
            "says why. Default: JSCPT, as the arguments set it.",
        ),
    ),
    ("lora_rank", PositiveInt, setting(2, "Rank of --method clip_lora.")),
    (
        "hyperparameters",
        Annotated[str, OneOf(HYPERPARAMETERS)],
        setting("paper", f"Whose --method takes: {' or '.join(HYPERPARAMETERS)}."),
    ),
    (
        "templates",
        Annotated[str, OneOf(TEMPLATES)] | None,
        setting(
            None,
            "Texts of classes: own (each task's own template, as CoOp's of its ten data sets), or ensemble (the means "
            "of that and seven general ones). Default: --class_template for all.",
        ),
    ),
    (
        "groups",
        str | None,
        setting(
            None,
            "mmap, hipro: which tasks share prompts, a YAML or JSON file of task: group, or task: [nodes from the "
            "root]; auto: by the tasks' gradients, as recipes/group_tasks.py. Default: all tasks.",
        ),
    ),
    ("num_groups", PositiveInt | None, setting(None, "auto, mmap: number of groups. Default: by the distances.")),
    ("tree_levels", PositiveInt | None, setting(None, "auto, hipro: nodes above a task, at most. Default: 2.")),
    ("warm_up_batches", PositiveInt, setting(16, "auto: batches of all tasks that the gradients come from.")),
]
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


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines, adds the defaults that say something, and names each argument once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if len(action.option_strings) < 2 or action.dest == "help":
            return super()._format_action_invocation(action)
        value = f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        return action.option_strings[0] + value


def _or_auto(kind: type) -> Callable[[str], Any]:
    """Reads a number, or "auto"."""

    def read(word: str) -> Any:
        return word if word == AUTO else kind(word)

    read.__name__ = kind.__name__  # which the parser's errors show
    return read


class YAMLLoader(yaml.SafeLoader):
    """Takes numbers as YAML 1.2 does, such as `1e-3`, and a key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, key) is not key:
                problem = f"it has the key {key.value!r} twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


# Numbers as YAML 1.2 has them: in 1.1 `1:30` is 90, `017` is 15 and `1_0` is 10.
NUMBERS = {
    "int": r"[-+]?(0|[1-9]\d*)$",
    "float": r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}
YAMLLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] not in NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for kind, pattern in NUMBERS.items():
    YAMLLoader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), list("-+.0123456789"))


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` whose errors are one line: it suggests the nearest argument where one is unknown."""

    def __init__(self, dataclasses: type | Sequence[type] = (), **options: Any) -> None:
        super().__init__(dataclasses, formatter_class=HelpFormatter, **options)
        for action in self._actions:
            if Auto in get_args(self.annotations.get(action.dest)):  # of which the base makes the number alone
                action.type = _or_auto(action.type)

    @property
    def names(self) -> set[str]:
        """Of all arguments, as configuration files write them."""
        return {action.dest for action in self._actions} - {"help"}

    @cached_property
    def annotations(self) -> dict[str, Any]:
        """What these may hold; a file can give a mapping where a word of the command line cannot."""
        found: dict[str, Any] = {}
        for each in self.dataclass_types:
            found |= annotations_of(each)
            if each is ModelArguments:
                found |= {name: annotations_of(JSCPTConfig)[name] for name, *_ in config_fields(JSCPTConfig)}
                found["groups"] = GROUPS
        return found | ANNOTATIONS

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        args = sys.argv[1:] if args is None else args
        for word in args:
            option = word.partition("=")[0]
            if option.startswith("--") and not any(known.startswith(option) for known in self._option_string_actions):
                self.error(f"unknown argument {option!r}.{nearest(option.lstrip('-'), self.names)}")
        return super().parse_known_args(args, namespace)

    def parse_dataclasses(self, arguments: Sequence[str] | None) -> tuple[Any, ...]:
        """One instance of each dataclass; a value that one of them refuses ends the program as a wrong word does."""
        try:
            return self.parse_args_into_dataclasses(arguments, look_for_args_file=False)
        except ValueError as error:
            self.error(str(error))


def parse(
    dataclasses: tuple[type, ...],
    description: str,
    arguments: Sequence[str] | None = None,
    shown: Set[str] = SHOWN,
    left_out: Set[str] = frozenset(),
    chosen: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """One instance of each of `dataclasses`.

    Values come from the command line; what it leaves out from the configuration file named first on it, if any; what
    that leaves out from the method (`with_method`) and the task set's own file (`own_configuration`), where there are
    such; and the rest are the defaults.

    Args:
        dataclasses: what to parse.
        description: the program's, for --help.
        arguments: the command line.
        shown: the inherited arguments that --help shows.
        left_out: what configuration files may say although it is not for this program: the task set's own file is
            read without it, and a file on the command line without what is no argument here.
        chosen: what `--method auto` has chosen, in the place of the task set's own settings.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    usage = "%(prog)s [CONFIG.yaml or .json] [--argument value ...]"
    parser = RecipeParser(dataclasses, usage=usage, description=description, epilog=EPILOG)
    if "--help_all" in arguments:
        arguments = ["--help"]
    else:
        shown = shown.union(*(each.__annotations__ for each in dataclasses)) - HIDDEN
        for action in parser._actions:
            if action.dest not in shown | {"help"}:
                action.help = argparse.SUPPRESS
    configuration = {}
    if arguments and Path(arguments[0]).suffix in (".yaml", ".yml", ".json"):
        given = _read(Path(arguments.pop(0)), parser, left_out)
        configuration = {name: value for name, value in given.items() if name in parser.names}
    if chosen is not None:
        arguments += ["--method", chosen["method"]]  # the last word counts
    said = {**configuration, **_said(arguments, "task_set", "method", "hyperparameters")}
    own = own_configuration(said.get("task_set", DataArguments.task_set))
    values = {} if own is None else _read(own, parser, left_out)
    values = {name: value for name, value in values.items() if name not in left_out}
    if ModelArguments in dataclasses and said.get("method") not in (None, AUTO):
        try:
            values = with_method(values, said["method"], said.get("hyperparameters", "paper"))
        except ValueError as error:
            parser.error(str(error))
    parser.set_defaults(**{**values, **(chosen or {}), **configuration})
    return parser.parse_dataclasses(arguments)


def own_configuration(task_set: str) -> Path | None:
    """`configs/<task_set>.yaml`, if there is one: for its data sets `few_shot_10`'s, for a mixture its first one's."""
    first = task_set.split(",")[0].strip()
    owner = next((name for name, members in TASK_SET_MEMBERS.items() if first in members), first)
    return next((path for path in CONFIGS.glob("*.yaml") if path.stem == owner), None)


def default_model(task_set: str) -> str:
    """The base model that a task set is trained with, if its own file names one; else the small CLIP."""
    own = own_configuration(task_set)
    settings = {} if own is None else yaml.safe_load(own.read_text(encoding="utf-8"))
    return base_source(settings.get("model_name_or_path"))


def base_source(name: str | None) -> str:
    """Where a base model is: in `ASSETS` if it is one of `BUNDLED` (default: the first), else as it is named."""
    name = BUNDLED[0] if name is None else name
    return str(ASSETS / name) if name in BUNDLED else name


def _said(arguments: list[str], *names: str) -> dict[str, str]:
    """What the command line says of `names`, before the rest of it can be understood."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name)
    return vars(parser.parse_known_args(arguments)[0])


def _read(path: Path, parser: RecipeParser, left_out: Set[str]) -> dict[str, Any]:
    try:
        values = read_json(path) if path.suffix == ".json" else yaml.load(read_text(path), Loader=YAMLLoader)
        values = {} if values is None else values
    except FileNotFoundError:
        parser.error(f"the configuration file {path} does not exist.")
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        parser.error(f"{path} cannot be read: {line}{error.problem or error.context}")
    except RecursionError:
        parser.error(f"{path} cannot be read: it is nested too deeply")
    except Exception as error:  # of the file, or of one of YAML's constructors, which know no common base
        parser.error(f"{path} cannot be read: {one_line(error)}")
    if not isinstance(values, dict):
        parser.error(f"{path} must hold `argument: value` pairs, got {type(values).__name__}.")
    known, annotations = parser.names | left_out, parser.annotations
    for name, value in values.items():
        if name not in known:
            parser.error(f"{path}: unknown argument {name!r}.{nearest(name, known)}")
        if name in annotations:
            try:
                check_setting(name, value, annotations[name])
            except ValueError as error:
                parser.error(f"{path}: {error}")
    return values
