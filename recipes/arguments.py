"""Arguments of the recipes: from the command line, or a YAML or JSON file, or both."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import HfArgumentParser

from jscpt_peft.choices import nearest
from jscpt_peft.data.benchmarks import TASK_SET_MEMBERS

CONFIGS = Path(__file__).parent / "configs"
TINY_CLIP = Path(__file__).parent / "assets" / "tiny-clip"


# What --help shows of TrainingArguments beside the arguments that this project adds or sets otherwise.
SHOWN = {
    *("output_dir", "max_steps", "seed", "bf16", "use_cpu", "logging_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end", "resume_from_checkpoint"),
    *(
        "gradient_accumulation_steps",
        "activation_checkpointing",
        "weight_decay",
        "dataloader_num_workers",
        "report_to",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        "hub_strategy",
    ),
}
HIDDEN = {"remove_unused_columns", "label_names"}  # ours to set, not the user's
EPILOG = "Every other argument of transformers.TrainingArguments works too: --help_all shows them."


@dataclass
class DataArguments:
    """Which tasks, and how many of their images."""

    _argument_group_name: ClassVar[str] = "data"
    task_set: str = field(
        default="shapes",
        metadata={
            "help": "shapes (drawn on the fly), folder (your own pictures in --data_root), emoji, office_home, "
            "mini_domainnet, few_shot_10, or benchmarks with commas between, such as food101,dtd."
        },
    )
    data_root: str | None = field(
        default=None,
        metadata={
            "help": "folder: ROOT of ROOT/<task>/<class>/* or ROOT/<task>/{train,validation,test}/<class>/*. "
            "Benchmarks: the folder with the data sets in the layouts of CoOp, Dassl or LibMTL; default: the Hub."
        },
    )
    data_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of the benchmarks' Hub repositories in place of the pinned ones."},
    )
    train_fraction: float | None = field(
        default=None, metadata={"help": "Part of each class's training images to use."}
    )
    shots: int | None = field(default=None, metadata={"help": "Training images a class."})
    spurious_strength: float | None = field(
        default=None, metadata={"help": "shapes: correlation of background and class in training, 0 to 1."}
    )
    manifest: str | None = field(default=None, metadata={"help": "Re-use the split of this manifest.json."})
    smallest_crop: float = field(
        default=0.08, metadata={"help": "Smallest part of a training picture's area that a random crop keeps."}
    )
    skip_bad_images: bool = field(default=False, metadata={"help": "Skip pictures that cannot be read."})


@dataclass
class ModelArguments:
    """The base model and the adapter."""

    _argument_group_name: ClassVar[str] = "model"
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A CLIPModel: Hub id or folder. Default: the small CLIP of the recipes."}
    )
    num_shared_tokens: int = field(default=16, metadata={"help": "Prompt tokens shared by all tasks, per block."})
    num_task_tokens: int = field(default=16, metadata={"help": "Prompt tokens of each task, per block."})
    prompt_depth: int | None = field(default=None, metadata={"help": "Prompted blocks. Default: all."})
    towers: str = field(default="both", metadata={"help": "both, vision or text."})
    class_template: str = field(default="{}.", metadata={"help": "Text of a class under prompts."})
    prompt_init: str | None = field(default=None, metadata={"help": "Words that start the shared text prompts."})
    prompt_init_std: float = field(default=0.02, metadata={"help": "Standard deviation of the prompts' start."})
    intervention: str = field(default="mask_mlp", metadata={"help": "Feature selection: mask_mlp (Eq. 2) or none."})
    intervention_hidden: int = field(default=8, metadata={"help": "Hidden width of the MLPs of Eq. 2."})
    intervention_shared: bool = field(default=False, metadata={"help": "One pair of MLPs for all tasks."})
    learn_masks: bool = field(default=True, metadata={"help": "False fixes the masks at 0.5."})


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines, adds the defaults that say something, and names each argument once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if len(action.option_strings) < 2 or action.dest == "help":
            return super()._format_action_invocation(action)
        value = f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        return action.option_strings[0] + value


def parse(
    dataclasses: tuple[type, ...],
    description: str,
    arguments: list[str] | None = None,
    shown: Set[str] = SHOWN,
    left_out: Set[str] = frozenset(),
) -> tuple[Any, ...]:
    """One instance of each of `dataclasses`.

    Values come from the command line; what it leaves out from the configuration file named first on it, if any; what
    that leaves out from the task set's own file (`own_configuration`), if it has one; and the rest are the defaults.

    Args:
        dataclasses: what to parse.
        description: the program's, for --help.
        arguments: the command line.
        shown: the inherited arguments that --help shows.
        left_out: what configuration files may say although it is not for this program: the task set's own file is
            read without it, and a file on the command line without what is no argument here.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(
        dataclasses,
        usage="%(prog)s [CONFIG.yaml or .json] [--argument value ...]",
        description=description,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    known = {action.dest for action in parser._actions}
    if "--help_all" in arguments:
        parser.parse_args(["--help"])
    shown = shown.union(*(vars(each)["__annotations__"] for each in dataclasses)) - HIDDEN
    for action in parser._actions:
        if action.dest not in shown | {"help"}:
            action.help = argparse.SUPPRESS
    configuration = {}
    if arguments and Path(arguments[0]).suffix in (".yaml", ".yml", ".json"):
        given = _read(Path(arguments.pop(0)), parser, known | left_out)
        configuration = {name: value for name, value in given.items() if name in known}
    task_set = _named_task_set(arguments) or configuration.get("task_set") or DataArguments.task_set
    own = own_configuration(task_set)
    if own.exists():
        values = _read(own, parser, known | left_out)
        configuration = {**{name: values[name] for name in values if name not in left_out}, **configuration}
    parser.set_defaults(**configuration)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except ValueError as error:  # of a value that an argument cannot have
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}.{nearest(unknown[0].lstrip('-'), known)}")
    return tuple(parsed)


def own_configuration(task_set: str) -> Path:
    """`configs/<task_set>.yaml`; that of `few_shot_10` for its data sets, and that of its first one for a mixture."""
    first = task_set.split(",")[0].strip()
    owner = next((name for name, members in TASK_SET_MEMBERS.items() if first in members), first)
    return CONFIGS / f"{owner}.yaml"


def _named_task_set(arguments: list[str]) -> str | None:
    """The task set on the command line, before the rest of it can be understood."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task_set", "--task-set")
    return parser.parse_known_args(arguments)[0].task_set


def _read(path: Path, parser: HfArgumentParser, known: set[str]) -> dict[str, Any]:
    if not path.exists():
        parser.error(f"the configuration file {path} does not exist.")
    text = path.read_text(encoding="utf-8")
    try:
        values = (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)) or {}
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        parser.error(f"{path} cannot be read: {error}")
    if not isinstance(values, dict):
        parser.error(f"{path} must hold `argument: value` pairs, got {type(values).__name__}.")
    for name in values:
        if name not in known:
            parser.error(f"{path}: unknown argument {name!r}.{nearest(name, known)}")
    return values
