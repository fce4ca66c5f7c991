"""What a checkpoint must have in common with the run that goes on from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jscpt_peft.model import JSCPTConfig

from .arguments import JSCPTTrainingArguments
from .distributed import world_size

# Decide which tensors there are and what they mean: with other values they do not fit, or fit something else.
ADAPTER = ("task_order", "tasks", "num_shared_tokens", "num_task_tokens", "prompt_depth", "towers", "intervention")
ADAPTER += ("intervention_hidden", "intervention_shared", "learn_masks", "class_token_ids", "base_dimensions")
OPTIMIZERS = ("optim", "scheduler_optimizer", "scheduler_parameterization", "gradient_aggregator")

# Decide what the next step does: with other values a run can go on, but is another one.
TRAINING = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay")
TRAINING += ("momentum", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs", "max_grad_norm", "bf16")
SCHEDULING = ("prompt_scheduling", "task_scheduling", "causal_effect", "reference", "affinity", "affinity_direction")
SCHEDULING += ("weight_normalization", "learn_scheduler", "lower_steps", "neumann_terms", "neumann_step_size")
SCHEDULING += ("power_iterations", "neumann_damping", "divergence_guard", "hvp", "hypergradient_batch_size")
SCHEDULING += ("hessian_parameters", "scheduler_learning_rate", "max_hypergradient_norm", "dev_batch_size")
SCHEDULING += ("cagrad_c", "fairgrad_alpha", "krum_byzantine", "krum_selected")


def fixed_configuration(adapter: JSCPTConfig, args: JSCPTTrainingArguments) -> dict[str, Any]:
    """Without these in common, a checkpoint cannot be loaded."""
    stored, arguments = adapter.to_dict(), vars(args)
    return {name: stored[name] for name in ADAPTER} | {name: _plain(arguments[name]) for name in OPTIMIZERS}


def reproducing_configuration(args: JSCPTTrainingArguments, train_sizes: Sequence[int]) -> dict[str, Any]:
    """Without these in common, the run goes on but not as it would have without a stop.

    Args:
        args: of the run.
        train_sizes: [N] training images of each task.
    """
    arguments = vars(args)
    chosen = {name: _plain(arguments[name]) for name in (*TRAINING, *SCHEDULING)}
    return chosen | {"processes": world_size(), "train_sizes": list(train_sizes)}


def _plain(value: Any) -> Any:
    """Transformers' enumerations by their value."""
    return value.value if hasattr(value, "value") else value
