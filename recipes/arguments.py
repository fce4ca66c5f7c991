"""Arguments of the recipes: from the command line, or a YAML or JSON file, or both."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import yaml
from model_arguments import GROUPS, ModelArguments, base_source, config_fields, with_method
from task_data import DataArguments
from transformers import HfArgumentParser

from jscpt_peft import JSCPTConfig
from jscpt_peft.choices import nearest
from jscpt_peft.data.benchmarks import TASK_SET_MEMBERS
from jscpt_peft.reading import one_line, read_json, read_text
from jscpt_peft.settings import annotations_of, check_setting
from jscpt_peft.training.arguments import AUTO, Auto
from jscpt_peft.training.trainer_settings import ANNOTATIONS

CONFIGS = Path(__file__).parent / "configs"

# What --help shows of TrainingArguments beside the arguments that this project adds or sets otherwise.
SHOWN = {
    *("output_dir", "max_steps", "seed", "bf16", "use_cpu", "logging_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end", "resume_from_checkpoint"),
    *("gradient_accumulation_steps", "activation_checkpointing", "weight_decay", "dataloader_num_workers"),
    *("report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
}
HIDDEN = {"remove_unused_columns", "label_names"}  # ours to set, not the user's
USAGE = "%(prog)s [CONFIG.yaml or .json] [--argument value ...]"
HELP_ALL = "--help_all"
EPILOG = f"Every other argument of transformers.TrainingArguments works too: {HELP_ALL} shows them."


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
    """One instance of each of `dataclasses`, for a program with this description.

    Values come from the command line; what it leaves out from the configuration file named first on it, if any; what
    that leaves out from the method (`with_method`) and the task set's own file (`own_configuration`), where there are
    such; and the rest are the defaults.

    Args:
        shown: the inherited arguments that --help shows.
        left_out: what configuration files may say although it is not for this program: the task set's own file is
            read without it, and a file on the command line without what is no argument here.
        chosen: what `--method auto` has chosen, in the place of the task set's own settings.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = RecipeParser(dataclasses, usage=USAGE, description=description, epilog=EPILOG)
    if HELP_ALL in arguments:
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


def words_given(dataclasses: Sequence[type], arguments: Sequence[str] | None) -> set[str]:
    """Names of the arguments that a command line gives, as configuration files write them."""
    parser = RecipeParser(dataclasses, usage=USAGE)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    words = sys.argv[1:] if arguments is None else arguments
    return set(vars(parser.parse_known_args([word for word in words if word != HELP_ALL])[0]))


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
