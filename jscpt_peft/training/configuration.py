"""What a checkpoint must have in common with the run that goes on from it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from jscpt_peft.model import JSCPTConfig

from .arguments import JSCPTTrainingArguments
from .distributed import world_size

# Decide which tensors there are and what they mean: with other values they do not fit, or fit something else.
ADAPTER = ("task_order", "tasks", "num_shared_tokens", "num_task_tokens", "prompt_depth", "towers", "intervention")
ADAPTER += ("intervention_hidden", "intervention_shared", "learn_masks", "class_token_ids", "base_dimensions")
OPTIMIZERS = ("optim", "scheduler_optimizer", "scheduler_parameterization", "gradient_aggregator")

# Decide what the next step does: with other values a run can go on, but is another one.
TRAINING = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate")
TRAINING += ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs")
TRAINING += ("momentum", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs", "max_grad_norm")
TRAINING += ("mixed_precision", "weight_decay")
SCHEDULING = ("prompt_scheduling", "task_scheduling", "causal_effect", "reference", "affinity", "affinity_direction")
SCHEDULING += ("weight_normalization", "learn_scheduler", "lower_steps", "neumann_terms", "neumann_step_size")
SCHEDULING += ("power_iterations", "neumann_damping", "divergence_guard", "hvp", "hypergradient_batch_size")
SCHEDULING += ("hypergradient_chunk_size", "hessian_parameters", "scheduler_learning_rate", "dev_batch_size")
SCHEDULING += ("max_hypergradient_norm", "cagrad_c", "fairgrad_alpha", "krum_byzantine", "krum_selected")


def fixed_configuration(adapter: JSCPTConfig, args: JSCPTTrainingArguments) -> dict[str, Any]:
    """Without these in common, a checkpoint cannot be loaded."""
    stored, arguments = adapter.to_dict(), vars(args)
    return {name: stored[name] for name in ADAPTER} | {name: _plain(arguments[name]) for name in OPTIMIZERS}


def reproducing_configuration(
    args: JSCPTTrainingArguments, sizes: dict[str, Sequence[int]], base_model: str | None
) -> dict[str, Any]:
    """Without these in common, the run goes on but not as it would have without a stop.

    Args:
        args: of the run.
        sizes: images of each task, [N], by split.
        base_model: name or path of the frozen CLIP.
    """
    arguments = vars(args)
    chosen = {name: _plain(arguments[name]) for name in (*TRAINING, *SCHEDULING)}
    return chosen | {"processes": world_size(), "images": sizes, "base_model": base_model}


def _plain(value: Any) -> Any:
    """Transformers' enumerations by their value."""
    return value.value if isinstance(value, Enum) else value
