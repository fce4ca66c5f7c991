"""The weighting that the training arguments ask for."""

from __future__ import annotations

from peft import PeftModel

from jscpt_peft.scheduling import (
    AGGREGATORS,
    FAMO,
    DynamicWeightAverage,
    GradientAggregator,
    GradNorm,
    GramianWeighting,
    JointScheduling,
    LossCosineScheduling,
    TaskPromptScheduler,
    UncertaintyWeighting,
    UniformWeighting,
    Weighting,
)

from .arguments import SCHEDULER, JSCPTTrainingArguments


def chosen_weighting(given: Weighting | None, args: JSCPTTrainingArguments, model: PeftModel) -> Weighting:
    """The weighting that a trainer was given, or what its arguments name.

    Raises:
        TypeError: what was given is none.
        ValueError: the tasks are to be weighed by the gradients of what they share, and share nothing.
    """
    if given is None:
        check_shared(args, model)
        return make_weighting(args, len(model.task_names))
    if not isinstance(given, Weighting):
        raise TypeError(f"`weighting` is a {type(given).__name__}: give a `Weighting`, or name one in `args`.")
    return given


def make_weighting(args: JSCPTTrainingArguments, tasks: int) -> Weighting:
    """What `args.weighting` names, for so many tasks."""
    name, normalization, rate = args.weighting, args.weight_normalization, args.weighting_learning_rate
    if name == "uniform" or (name == SCHEDULER and not (args.prompt_scheduling or args.task_scheduling)):
        return UniformWeighting()
    if name == SCHEDULER:
        return _joint_scheduling(args, tasks)
    if name == "loss_cosine":
        return LossCosineScheduling(tasks, normalization)
    if name == "uw":
        return UncertaintyWeighting(tasks, normalization, rate)
    if name == "dwa":
        return DynamicWeightAverage(tasks, normalization, args.dwa_temperature)
    if name == "famo":
        return FAMO(tasks, normalization, rate, args.famo_decay)
    if name == "gradnorm":
        return GradNorm(tasks, normalization, rate, args.gradnorm_alpha)
    return GramianWeighting(_aggregator(args, tasks, "weighting"), normalization)


def check_shared(args: JSCPTTrainingArguments, model: PeftModel) -> None:
    """Raises a `ValueError` where tasks are to be weighed by the gradients of what they share, and share nothing."""
    by_gradients = args.weighting == "gradnorm" or args.weighting in AGGREGATORS
    if by_gradients and not any(part.shared() for part in model.task_adapter.parts()):
        raise ValueError(
            f"`weighting={args.weighting!r}` weighs the tasks by their gradients with respect to what they share, but "
            "the tasks of this adapter share no parameter: choose another weighting, or leave out `single_task`."
        )


def _joint_scheduling(args: JSCPTTrainingArguments, tasks: int) -> JointScheduling:
    scheduler = TaskPromptScheduler(
        tasks,
        affinity_direction=args.affinity_direction,
        weight_normalization=args.weight_normalization,
        parameterization=args.scheduler_parameterization,
        prompt_scheduling=args.prompt_scheduling,
        task_scheduling=args.task_scheduling,
    )
    aggregator = None if args.gradient_aggregator is None else _aggregator(args, tasks, "gradient_aggregator")
    return JointScheduling(scheduler, args.causal_effect, args.affinity, aggregator)


def _aggregator(args: JSCPTTrainingArguments, tasks: int, argument: str) -> GradientAggregator:
    return GradientAggregator(
        getattr(args, argument),
        tasks,
        seed=args.seed,
        cagrad_c=args.cagrad_c,
        fairgrad_alpha=args.fairgrad_alpha,
        krum_byzantine=args.krum_byzantine,
        krum_selected=args.krum_selected,
        argument=argument,
    )
