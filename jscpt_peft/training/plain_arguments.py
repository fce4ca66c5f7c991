"""`JSCPTTrainingArguments` for those who give a trainer plain `TrainingArguments`, or none."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from .arguments import JSCPTTrainingArguments

logger = logging.get_logger(__name__)


def own_arguments(args: TrainingArguments | None) -> JSCPTTrainingArguments:
    """Arguments of Algorithm 1, with what `args` sets to anything but `TrainingArguments`' own default.

    What stands at that default, set or not, gets the default of `JSCPTTrainingArguments`, the paper's: a learning rate
    of 5e-5 becomes 1.5e-3. Who wants the former gives `JSCPTTrainingArguments`. `None` stands for all defaults, with
    `output_dir` as `Trainer` has it.
    """
    if isinstance(args, JSCPTTrainingArguments):
        args.check()
        return args
    if not isinstance(args, TrainingArguments | None):
        raise TypeError(f"`args` is a {type(args).__name__}: give `JSCPTTrainingArguments`.")
    if args is None:
        return JSCPTTrainingArguments(output_dir="tmp_trainer")
    given = {each.name: getattr(args, each.name) for each in fields(TrainingArguments) if each.init}
    defaults = {each.name: _default(each) for each in fields(TrainingArguments)}
    # These two must stay as they are here.
    kept = {name: value for name, value in given.items() if name not in ("remove_unused_columns", "label_names")}
    own = JSCPTTrainingArguments(**{name: value for name, value in kept.items() if value != defaults[name]})
    moved = [name for name in kept if kept[name] == defaults[name] and getattr(own, name) != kept[name]]
    logger.warning(
        "Plain `TrainingArguments` were given. What stands at their default is set as in `JSCPTTrainingArguments`: "
        f"{', '.join(f'{name} = {getattr(own, name)!r}' for name in moved)}."
    )
    return own


def _default(each: Field) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()
