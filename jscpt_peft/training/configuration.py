"""What a checkpoint must have in common with the run that goes on from it.

A new field of `JSCPTConfig` or of `JSCPTTrainingArguments` takes part by itself, unless it is named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from enum import Enum
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import TrainingArguments

from .arguments import JSCPTTrainingArguments
from .distributed import world_size

# Of the adapter: all but what the stored tensors and token ids already tell.
STORED = {"class_template", "tokenizer_name_or_path", "target_modules"}
STORED |= {"prompt_init", "prompt_init_token_ids", "prompt_init_std", "vision_init", "init_seed"}
# Of the arguments: what the optimizers' states depend on.
OPTIMIZERS = ("optim", "scheduler_optimizer", "scheduler_parameterization", "weighting", "gradient_aggregator")
# Of those of `Trainer`, what else decides what a step does.
INHERITED = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "mixed_precision")
INHERITED += ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "tf32")
INHERITED += ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs")
INHERITED += ("max_grad_norm",)
# Of one's own, what decides nothing of that.
IRRELEVANT = {"overwrite_output_dir", "dataloader_timeout", "max_nonfinite_steps", "log_gradient_cosines"}
# Part of the optimizers' states, so that the checkpoint's values stay in force.
RESTORED = {"learning_rate", "weight_decay", "momentum", "scheduler_learning_rate"}
RESTORED |= {"adam_beta1", "adam_beta2", "adam_epsilon"}


def fixed_configuration(model: PeftModel, args: JSCPTTrainingArguments) -> dict[str, Any]:
    """Without these in common, a checkpoint cannot be loaded."""
    adapter = model.active_jscpt_config
    names = [each.name for each in fields(adapter) if each.name not in _names(PeftConfig) | STORED]
    stored = adapter.to_dict()
    optimizers = {name: _plain(getattr(args, name)) for name in OPTIMIZERS}
    # An optimizer's state is that of the parameters that learn.
    return {name: stored[name] for name in names} | optimizers | {"trained_task": model.trained_task}


def reproducing_configuration(
    model: PeftModel, args: JSCPTTrainingArguments, sizes: dict[str, Sequence[int]]
) -> dict[str, Any]:
    """Without these in common, the run goes on but not as it would have without a stop.

    `sizes` are the numbers of images of each task, [N], by split.
    """
    own = [name for name in _names(type(args)) - _names(TrainingArguments) - IRRELEVANT if name not in OPTIMIZERS]
    chosen = {name: _plain(getattr(args, name)) for name in (*INHERITED, *sorted(own))}
    base = model.active_peft_config.base_model_name_or_path
    return chosen | {"processes": world_size(), "images": sizes, "base_model": base}


def _names(dataclass: type) -> set[str]:
    return {each.name for each in fields(dataclass)}


def _plain(value: Any) -> Any:
    """Transformers' enumerations by their value."""
    return value.value if isinstance(value, Enum) else value
