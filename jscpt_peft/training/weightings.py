"""The weighting that the training arguments ask for."""

from __future__ import annotations

from jscpt_peft.scheduling import (
    GradientAggregator,
    JointScheduling,
    TaskPromptScheduler,
    UniformWeighting,
    Weighting,
)

from .arguments import JSCPTTrainingArguments


def make_weighting(args: JSCPTTrainingArguments, num_tasks: int) -> Weighting:
    """Joint scheduling with the switches of `args`; plain joint training where both of its factors are off."""
    if not (args.prompt_scheduling or args.task_scheduling):
        return UniformWeighting()
    scheduler = TaskPromptScheduler(
        num_tasks,
        affinity_direction=args.affinity_direction,
        weight_normalization=args.weight_normalization,
        parameterization=args.scheduler_parameterization,
        prompt_scheduling=args.prompt_scheduling,
        task_scheduling=args.task_scheduling,
    )
    aggregator = None
    if args.gradient_aggregator is not None:
        aggregator = GradientAggregator(
            args.gradient_aggregator,
            num_tasks,
            seed=args.seed,
            cagrad_c=args.cagrad_c,
            fairgrad_alpha=args.fairgrad_alpha,
            krum_byzantine=args.krum_byzantine,
            krum_selected=args.krum_selected,
        )
    return JointScheduling(scheduler, args.causal_effect, args.affinity, aggregator)
