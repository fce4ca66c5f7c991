"""Are optimizer, schedule and activation checkpointing what their options say, and does every option do something?"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from jscpt_peft.choices import check_choice
from jscpt_peft.reading import one_line
from jscpt_peft.settings import OneOf, PositiveInt, check_setting

if TYPE_CHECKING:
    from .arguments import JSCPTTrainingArguments

# What needs no trial: the others want packages, a model, or options of their own.
PLAIN_OPTIMIZERS = (OptimizerNames.SGD, OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)
PLAIN_SCHEDULES = (SchedulerType.COSINE, SchedulerType.LINEAR, SchedulerType.CONSTANT)
WITHOUT_OPTIONS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
# Of the optimizers that read them; others do not.
OF_OPTIMIZERS = ("momentum", "adam_beta1", "adam_beta2", "adam_epsilon")
# Of `Trainer`, and of `torch.utils.checkpoint.checkpoint`.
CHECKPOINTING = {
    "every_n_layers": PositiveInt,
    **dict.fromkeys(("offload", "use_reentrant", "preserve_rng_state", "debug", "early_stop"), bool),
    "determinism_check": Annotated[str, OneOf(("default", "none"))],
    "context_fn": Callable,
}


def check_mappings(args: JSCPTTrainingArguments) -> None:
    """Raises a `ValueError` where a mapping, which the command line writes as JSON, is none or would do nothing."""
    schedule, old, new = (
        _mapping(name, getattr(args, name))
        for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
    )
    if schedule and args.lr_scheduler_type in WITHOUT_OPTIONS:
        raise ValueError(
            f"`lr_scheduler_kwargs={schedule!r}` does nothing with `lr_scheduler_type="
            f"{str(getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type))!r}`: leave it out."
        )
    if None not in (old, new) and old != new:
        raise ValueError(
            f"`gradient_checkpointing_kwargs={old!r}` is an older name of `activation_checkpointing_kwargs`, which is "
            f"{new!r}: leave it out."
        )
    for name, given in (("activation_checkpointing_kwargs", new), ("gradient_checkpointing_kwargs", old)):
        if given is None:
            continue
        for key, value in given.items():
            check_choice(f"a key of {name}", key, sorted(CHECKPOINTING))
            check_setting(f"{name}[{key!r}]", value, CHECKPOINTING[key])
        if given.get("use_reentrant"):
            raise ValueError(
                f"`{name}={given!r}` does not work with `torch.autograd.grad`: use `{{'use_reentrant': False}}`."
            )
        if given and not (args.activation_checkpointing or args.gradient_checkpointing):
            raise ValueError(f"`{name}={given!r}` does nothing without `activation_checkpointing`: leave it out.")


def _mapping(argument: str, value: Any) -> dict[str, Any] | None:
    try:
        mapping = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{argument}` must be JSON, got {value!r} ({error}).") from error
    check_setting(argument, mapping, dict[str, Any] | None)
    for key, each in (mapping or {}).items():
        if isinstance(each, int | float):
            check_setting(f"{argument}[{key!r}]", each, float | bool)
    return mapping


def check_optimizer(args: JSCPTTrainingArguments) -> None:
    """Makes optimizer and schedule for a single number: what they refuse is refused here, and what they pass over."""
    for name in OF_OPTIMIZERS:
        default = getattr(type(args), name)
        if getattr(args, name) != default and _kind(args) == _kind(args, **{name: default}):
            raise ValueError(
                f"`{name}={getattr(args, name)!r}` does nothing with `optim={args.optim.value!r}`: leave it out."
            )
    plain = args.optim in PLAIN_OPTIMIZERS and args.lr_scheduler_type in PLAIN_SCHEDULES
    if plain and not args.optim_args and not args.lr_scheduler_kwargs:
        return
    try:
        rates = _rates(args)
    except Exception as error:  # each optimizer has its own
        unknown = re.search(r"unexpected keyword argument '(.*)'", str(error))
        if unknown and unknown[1] in (args.lr_scheduler_kwargs or {}):
            raise ValueError(
                f"`lr_scheduler_kwargs` {args.lr_scheduler_kwargs!r}: the schedule {args.lr_scheduler_type.value!r} "
                f"takes no {unknown[1]!r}: leave it out."
            ) from error
        raise ValueError(f"{_named(args)}, cannot be made: {one_line(error)}.") from error
    if not all(map(math.isfinite, rates)):
        raise ValueError(f"{_named(args)}, give the learning rates {rates}: all must be finite.")
    _check_optim_args(args)


def _named(args: JSCPTTrainingArguments) -> str:
    return (
        f"`optim` {args.optim.value!r} with `optim_args` {args.optim_args!r}, and `lr_scheduler_type` "
        f"{args.lr_scheduler_type.value!r} with `lr_scheduler_kwargs` {args.lr_scheduler_kwargs!r}"
    )


def _rates(args: JSCPTTrainingArguments) -> list[float]:
    """The learning rates of a short run."""
    optimizer, keywords = args.optimizer()
    optimizer = optimizer([torch.nn.Parameter(torch.zeros(1))], **keywords)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, 1, 8, args.lr_scheduler_kwargs)
    metric = [1.0] if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY) else []
    rates = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(8):
        optimizer.step()
        schedule.step(*metric)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def _check_optim_args(args: JSCPTTrainingArguments) -> None:
    pairs = [pair.split("=") for pair in (args.optim_args or "").replace(" ", "").split(",") if pair]
    given = dict(pairs)
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"`optim_args` {args.optim_args!r} gives {key!r} twice: leave out one of them.")
        if _is_not_finite(given[key]):
            raise ValueError(f"`optim_args` {args.optim_args!r} gives {key!r} {given[key]}: it must be finite.")
        others = {name: value for name, value in given.items() if name != key}
        without = _kind(args, optim_args=_joined(others))
        # Whoever reads it makes something else of at least one of these, or refuses it.
        if all(_kind(args, optim_args=_joined({**others, key: probe})) == without for probe in ("0.123", "True", "7")):
            raise ValueError(
                f"`optim_args` {args.optim_args!r}: the optimizer {args.optim.value!r} takes no {key!r}: leave it out."
            )


def _joined(options: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def _kind(args: TrainingArguments, **changed: Any) -> str:
    """What would be made with these arguments changed, or why it would not, for comparison."""
    probe = copy(args)
    vars(probe).update(changed)
    try:
        return repr(probe.optimizer())
    except Exception as error:  # each optimizer has its own
        return repr(error)


def _is_not_finite(word: str) -> bool:
    try:
        return not math.isfinite(float(word))
    except ValueError:
        return False
