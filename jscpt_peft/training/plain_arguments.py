"""`JSCPTTrainingArguments` for those who give a trainer plain `TrainingArguments`, or none."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from transformers import TrainingArguments

from .arguments import JSCPTTrainingArguments


def own_arguments(args: TrainingArguments | None) -> JSCPTTrainingArguments:
    """Arguments of Algorithm 1, with what `args` sets to anything but `TrainingArguments`' own default.

    What stands at that default, set or not, gets the default of `JSCPTTrainingArguments`, the paper's: a learning rate
    of 5e-5 becomes 1.5e-3. Who wants the former gives `JSCPTTrainingArguments`.

    Args:
        args: of a `Trainer`; `None`: all defaults, with `output_dir` as `Trainer` has it.
    """
    if isinstance(args, JSCPTTrainingArguments):
        return args
    if args is None:
        return JSCPTTrainingArguments(output_dir="tmp_trainer")
    given = {each.name: getattr(args, each.name) for each in fields(TrainingArguments) if each.init}
    defaults = {each.name: _default(each) for each in fields(TrainingArguments)}
    # These two must stay as they are here.
    kept = {name: value for name, value in given.items() if name not in ("remove_unused_columns", "label_names")}
    return JSCPTTrainingArguments(**{name: value for name, value in kept.items() if value != defaults[name]})


def _default(each: Field) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()
