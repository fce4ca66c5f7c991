"""Arguments on the command line that change nothing in what is done: they are told of, in one line.

What a configuration file says beside them may be for another program, and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from arguments import words_given
from cli_errors import console
from model_arguments import config_fields
from outside_methods import OUTSIDE
from task_data import DataArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from jscpt_peft import JSCPTConfig
from jscpt_peft.training import JSCPTTrainingArguments
from jscpt_peft.training.arguments import AUTO, SCHEDULER

SAVING = {"save_strategy", "save_steps", "save_total_limit", "save_only_model", "load_best_model_at_end"}
SAVING |= {"metric_for_best_model", "greater_is_better", "resume_from_checkpoint"}
LOGGING = {"logging_strategy", "logging_steps", "logging_first_step", "report_to", "run_name"}
EVALUATING = {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start"}
HUB = {"hub_token", "hub_strategy", "hub_always_push"}
PUBLISHING = {*HUB, "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"}
UPPER_LEVEL = {"lower_steps", "neumann_terms", "neumann_step_size", "power_iterations", "neumann_damping", "hvp"}
UPPER_LEVEL |= {"divergence_guard", "hypergradient_batch_size", "hypergradient_chunk_size", "hypergradient_dtype"}
UPPER_LEVEL |= {"hessian_parameters", "scheduler_learning_rate", "scheduler_optimizer", "max_hypergradient_norm"}
UPPER_LEVEL |= {"dev_batch_size", "dev_loss"}
OPTIMIZING = {"learning_rate", "weight_decay", "max_grad_norm", "optim", "optim_args", "lr_scheduler_type", "momentum"}
OPTIMIZING |= {"adam_beta1", "adam_beta2", "adam_epsilon", "warmup_steps", "num_train_epochs", "max_steps"}
OPTIMIZING |= {"gradient_accumulation_steps", "activation_checkpointing", "gradient_checkpointing"}
SCHEDULING = {"prompt_scheduling", "task_scheduling", "learn_scheduler", "max_nonfinite_steps", *UPPER_LEVEL}
WEIGHTING = {"weighting", "gradient_aggregator", "causal_effect", "reference", "affinity", "affinity_direction"}
WEIGHTING |= {"weight_normalization", "log_gradient_cosines", "weigh_own_steps", "task_prior"}
# Of what no other program than a training knows.
OF_TRAINING = {*SAVING, *LOGGING, *EVALUATING, *PUBLISHING, *OPTIMIZING, *SCHEDULING, *WEIGHTING}
OF_EVALUATION = {*OF_TRAINING, "per_device_train_batch_size", "jpeg_side", "smallest_crop"}
OF_GROUPING = {*OF_TRAINING, "per_device_eval_batch_size", "groups"}
OF_GROUPING |= {name for name, *_ in config_fields(JSCPTConfig)}
OF_GROUPING -= {"class_template", "prompt_depth", "prompt_init_std", "num_shared_tokens", "prompts", "single_task"}
OF_TABLES = {*SAVING, *LOGGING, *EVALUATING, *PUBLISHING, "disable_tqdm", "overwrite_output_dir"}


def _learns(training: JSCPTTrainingArguments) -> bool:
    scheduled = training.prompt_scheduling or training.task_scheduling
    by_omega = scheduled if training.weighting == SCHEDULER else training.weighting == "loss_cosine"
    return training.learn_scheduler and by_omega


def idle_in_training(data: DataArguments, model_arguments: Any, training: JSCPTTrainingArguments) -> set[str]:
    """Names of the arguments that a training with these passes over."""
    rules = [
        (UPPER_LEVEL, not _learns(training)),
        ({"causal_effect", "reference"}, not training.prompt_scheduling),
        ({"affinity", "affinity_direction"}, not training.task_scheduling),
        ({*SAVING, *SCHEDULING, "gradient_aggregator"}, model_arguments.method in OUTSIDE),
        ({"num_train_epochs"}, training.max_steps > 0),
        ({"eval_steps"}, training.eval_strategy != IntervalStrategy.STEPS),
        ({"save_steps"}, training.save_strategy != SaveStrategy.STEPS),
        ({"logging_steps"}, training.logging_strategy != IntervalStrategy.STEPS),
        (HUB, not training.push_to_hub),
        ({"warm_up_batches"}, model_arguments.groups != AUTO),
        ({"jpeg_side"}, data.task_set == "shapes"),  # drawn
    ]
    return set().union(*(names for names, is_idle in rules if is_idle))


def tell_idle(kinds: Sequence[type], command_line: Sequence[str] | None, idle: Iterable[str]) -> None:
    """Names those of `idle` that the command line gives."""
    names = sorted(words_given(kinds, command_line) & set(idle))
    if names:
        listed = ", ".join(f"`{name}`" for name in names)
        console.print(f"Without effect here: {listed}.", style="yellow", highlight=False, soft_wrap=True)
