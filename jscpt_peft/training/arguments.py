"""`JSCPTTrainingArguments`: `TrainingArguments` plus Algorithm 1."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from jscpt_peft.model.backbones.double_backward import PRECISIONS
from jscpt_peft.scheduling import AGGREGATORS, NEUTRAL_EFFECT
from jscpt_peft.scheduling.affinity import AFFINITIES
from jscpt_peft.scheduling.scheduler import AFFINITY_DIRECTIONS, PARAMETERIZATIONS, WEIGHT_NORMALIZATIONS
from jscpt_peft.settings import (
    BatchSize,
    Between,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    PositiveRate,
    Rate,
    Terms,
    check_settings,
    setting,
)

from .distributed import join_on_cpu
from .hessian import HESSIAN_PRODUCTS
from .optimizer_checks import check_mappings, check_optimizer
from .trainer_settings import ANNOTATIONS, check_launcher, check_refused, check_trackers, usual_workers

CALIBRATED = "calibrated"
WATCHING_A_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
AUTO = "auto"
Auto = Annotated[str, OneOf((AUTO,))]
DEFAULT_METRIC = "mean_accuracy"
SCHEDULER = "scheduler"
WEIGHTINGS = (SCHEDULER, "loss_cosine", "uniform", "uw", "gradnorm", "dwa", "famo", *AGGREGATORS)
# Option -> the weightings, or aggregators, that know it.
WEIGHTING_OPTIONS = {
    "cagrad_c": ("cagrad",),
    "fairgrad_alpha": ("fairgrad",),
    "krum_byzantine": ("krum",),
    "krum_selected": ("krum",),
    "weighting_learning_rate": ("uw", "gradnorm", "famo"),
    "gradnorm_alpha": ("gradnorm",),
    "dwa_temperature": ("dwa",),
    "famo_decay": ("famo",),
}
# What belongs to Eqs. 4-6 alone.
SCHEDULER_OPTIONS = ("gradient_aggregator", "causal_effect", "reference", "affinity", "affinity_direction")
SCHEDULER_OPTIONS += ("scheduler_parameterization",)


@dataclass
class JSCPTTrainingArguments(TrainingArguments):
    """Arguments of `JSCPTTrainer`: those of `TrainingArguments`, with the paper's defaults, and those of Algorithm 1.

    `per_device_train_batch_size` counts images of *every* task: a step takes B images of each.

    Raises:
        ValueError: an argument is of another type, out of its range, does not go with another one, or would do
            nothing here (`jscpt_peft.training.trainer_settings.REFUSED`).
    """

    _argument_group_name: ClassVar[str] = "training"

    # ---- TrainingArguments with other defaults (paper, section 4.1) ----
    per_device_train_batch_size: BatchSize = setting(16, "Images of every task in a step.")
    per_device_eval_batch_size: BatchSize = setting(64, "Images in an evaluation step.")
    num_train_epochs: PositiveFloat = setting(50.0, "Passes over the largest task.")
    learning_rate: Rate = setting(1.5e-3, "Learning rate η₁ of the prompts.")
    optim: Annotated[str, OneOf([each.value for each in OptimizerNames])] = setting("sgd", "Optimizer of the prompts.")
    momentum: Annotated[float, Between(0, 1, open_high=True)] = setting(0.9, "Momentum of --optim sgd.")
    lr_scheduler_type: Annotated[str, OneOf([each.value for each in SchedulerType])] = setting(
        "cosine", "Schedule of the learning rate."
    )
    warmup_steps: NonNegativeFloat | None = setting(
        None, "Warm-up steps, or a part of all steps if below 1. Default: one epoch; 0 with --max_steps."
    )
    max_grad_norm: NonNegativeFloat = setting(0.0, "Clip the gradient of the prompts; 0 does not.")
    remove_unused_columns: bool = setting(False, "Must stay False: the batches are made here.")
    logging_nan_inf_filter: bool = setting(False, "Look at every step's loss, for which the device is waited for.")
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Must stay as it is."})

    metric_for_best_model: str | None = setting(DEFAULT_METRIC, "What --load_best_model_at_end compares.")
    dataloader_num_workers: int | None = setting(
        None, "Processes that read images. Default: on a GPU its share of the CPUs, at most 8; else 0, no others."
    )
    dataloader_timeout: NonNegativeInt = setting(
        600, "Seconds to wait for a data worker's batch before it counts as dead."
    )
    restore_callback_states_from_checkpoint: bool = setting(
        True, "A resumed run takes its callbacks' states (early stopping's patience) along."
    )
    overwrite_output_dir: bool = setting(False, "Write into an output directory in use.")

    # ---- the tasks' weights ----
    weighting: Annotated[str, OneOf(WEIGHTINGS)] = setting(
        SCHEDULER,
        "What weighs the tasks: scheduler (Eqs. 4-6, with the options below), loss_cosine "
        "(gradient cosines and losses, with learned weights), uniform (plain joint training), uw "
        f"(uncertainty), gradnorm, dwa, famo, or by the shared gradients alone {', '.join(AGGREGATORS)} (TorchJD; "
        "needs jscpt-peft[aggregators]).",
    )
    log_gradient_cosines: bool = setting(False, "The history holds the tasks' gradient cosines, whatever weighs them.")
    weigh_own_steps: bool = setting(
        False, "Weights scale the steps of a task's own parameters, not their gradients (for adaptive optimizers)."
    )
    task_prior: Rate = setting(0.0, "λ: pull of a task's own parameters towards the weighted mean of the tasks'.")
    weighting_learning_rate: PositiveRate = setting(0.025, "Learning rate of --weighting uw, gradnorm and famo.")
    gradnorm_alpha: Rate = setting(1.5, "α of --weighting gradnorm: how strongly slow tasks are pulled.")
    dwa_temperature: PositiveRate = setting(2.0, "T of --weighting dwa.")
    famo_decay: Rate = setting(0.01, "γ of --weighting famo.")

    # ---- the scheduler (Eqs. 4-6) ----
    prompt_scheduling: bool = setting(True, "Weigh tasks by causal effect (Eq. 4).")
    task_scheduling: bool = setting(True, "Weigh tasks by inter-task affinity (Eq. 5).")
    causal_effect: Annotated[str, OneOf(NEUTRAL_EFFECT)] = setting(
        "literal", "Eq. 4: literal, σ(exp(d)), or sigmoid, σ(d)."
    )
    reference: Annotated[str, OneOf(("original", "complement"))] = setting(
        "original", "What Eq. 4 compares x̄ with: original, x, or complement, (1-M)∘x."
    )
    affinity: Annotated[str, OneOf(AFFINITIES)] = setting("clipped", "Eq. 5: clipped to [-1, 1], cosine or unclipped.")
    affinity_direction: Annotated[str, OneOf(AFFINITY_DIRECTIONS)] = setting(
        "incoming", "A[:, i] (incoming) or A[i, :] (outgoing)."
    )
    weight_normalization: Annotated[str, OneOf(WEIGHT_NORMALIZATIONS)] = setting(
        "sum", "sum: the weights sum to the number of tasks; none: as published, for the scheduler Eq. 6 as printed."
    )
    scheduler_parameterization: Annotated[str, OneOf(PARAMETERIZATIONS)] = setting(
        "unconstrained", "unconstrained, or softplus, which keeps α and β positive."
    )
    gradient_aggregator: Annotated[str, OneOf(AGGREGATORS)] | None = setting(
        None,
        "Weights of TorchJD instead of the affinity factor, from the shared prompts' gradients: "
        f"{', '.join(AGGREGATORS)}. Needs jscpt-peft[aggregators].",
    )
    cagrad_c: Rate = setting(0.5, "c of --gradient_aggregator cagrad.")
    fairgrad_alpha: Rate = setting(1.0, "α of --gradient_aggregator fairgrad.")
    krum_byzantine: NonNegativeInt = setting(
        0, "Tasks that --gradient_aggregator krum distrusts; it needs 3 tasks more."
    )
    krum_selected: PositiveInt = setting(1, "Tasks that --gradient_aggregator krum selects.")

    # ---- the upper level (Eqs. 8-11) ----
    learn_scheduler: bool = setting(True, "Update Ω = {α, β}; without, it stays at 1.")
    lower_steps: PositiveInt | Auto = setting(
        10, "M: lower steps between two updates of Ω; auto: at least 64 updates in a run."
    )
    neumann_terms: Terms = setting(3, "H of Eq. 11; 0 needs no Hessian-vector product.")
    neumann_step_size: PositiveRate = setting(1.0, "Largest step size of the Neumann series.")
    power_iterations: Terms = setting(3, "Products that estimate λ_max for the step size 0.9/λ_max; 0 fixes it.")
    neumann_damping: NonNegativeFloat | None = setting(
        None, "λ added to the Hessian's diagonal. Default: --weight_decay."
    )
    divergence_guard: bool = setting(True, "End the Neumann series where its terms begin to grow.")
    hvp: Annotated[str, OneOf(HESSIAN_PRODUCTS)] = setting(
        "exact", "Hessian-vector products: exact, or finite_difference of two gradients."
    )
    hypergradient_batch_size: BatchSize | None = setting(
        None, "Images of every task of the whole step in the Hessian. Default: all of them."
    )
    hypergradient_chunk_size: BatchSize | None = setting(
        None,
        "Images of one task whose graph is held at a time in the upper level, made anew for every "
        "product. Default: the lower step's graph is kept.",
    )
    hypergradient_dtype: Annotated[str, OneOf(PRECISIONS)] = setting("float32", "Precision of the upper level.")
    hessian_parameters: Annotated[str, OneOf(("all", "shared"))] = setting(
        "all", "θ of the Hessian: all, or shared prompts only."
    )
    scheduler_learning_rate: PositiveRate | Auto = setting(
        1e-2, "Learning rate η₂ of Ω; auto: 16 / number of updates in the run, at most 0.25."
    )
    scheduler_optimizer: Annotated[str, OneOf(("adam", "sgd"))] = setting("adam", "Optimizer of Ω: adam or sgd.")
    max_hypergradient_norm: NonNegativeFloat = setting(10.0, "Clip the gradient of Ω; 0 does not.")
    dev_batch_size: BatchSize | None = setting(
        None, "Dev images of every task in an update of Ω. Default: as in training."
    )
    dev_loss: Annotated[str, OneOf(("cross_entropy", CALIBRATED))] = setting(
        "cross_entropy",
        "Loss of a task on D_dev (Eq. 8): cross_entropy, or calibrated: that at the temperature at which it is least.",
    )
    compile_blocks: Annotated[str, OneOf(("inductor", "aot_eager"))] | None = setting(
        None, "torch.compile's backend for the blocks."
    )
    cuda_graphs: Annotated[str, OneOf(("auto", "off"))] = setting("off", "auto: replay recorded lower steps on GPUs.")
    max_nonfinite_steps: PositiveInt = setting(
        10, "Stop after so many steps in a row with a task whose loss is not finite."
    )

    def __post_init__(self) -> None:
        self._check_each()
        if self.warmup_steps is None:
            self.warmup_steps = min(1.0 / self.num_train_epochs, 0.5) if self.max_steps <= 0 else 0.0
        on_cpu = self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = usual_workers(on_cpu)
            if self.dataloader_num_workers > 0:  # new ones for every epoch cost more than an epoch of few shots
                self.dataloader_persistent_workers = True
        if on_cpu and self.ddp_backend in (None, "gloo"):
            join_on_cpu(self.ddp_timeout)
        elif on_cpu:
            raise ValueError(f"`ddp_backend={self.ddp_backend!r}` does not join processes on CPUs: leave it out.")
        super().__post_init__()
        if self.lr_scheduler_type in WATCHING_A_METRIC:  # both take less for better, unless they are told
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **(self.lr_scheduler_kwargs or {})}
        self._check_together()
        check_launcher(self)
        check_optimizer(self)

    def check(self) -> None:
        """Raises a `ValueError` as the constructor does: arguments may have been set since."""
        self._check_each()
        self._check_together()
        check_optimizer(self)

    def _check_each(self) -> None:
        check_settings(self, ANNOTATIONS)
        check_refused(self)
        check_trackers(self.report_to)
        check_mappings(self)

    def _check_together(self) -> None:
        if self.max_steps == 0:
            raise ValueError(
                "`max_steps` is 0, which `Trainer` takes for all epochs: give at least 1, or leave it out."
            )
        if 0 < self.max_steps < self.warmup_steps:
            raise ValueError(
                f"`warmup_steps` is {self.warmup_steps}, beyond `max_steps` {self.max_steps}: the learning rate would "
                "never be reached; give fewer, or a part below 1."
            )
        if self.load_best_model_at_end and self.eval_strategy == "no":
            raise ValueError(
                "`load_best_model_at_end=True` needs an `eval_strategy`: without one nothing is compared."
            )
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise ValueError("`dataloader_persistent_workers=True` needs `dataloader_num_workers`: leave it out.")
        if self.gradient_aggregator is not None and not self.task_scheduling:
            raise ValueError(
                f"`gradient_aggregator={self.gradient_aggregator!r}` takes the place of the affinity factor, "
                "which `task_scheduling=False` switches off: leave out one of the two."
            )
        for name in SCHEDULER_OPTIONS if self.weighting != SCHEDULER else ():
            if getattr(self, name) != getattr(JSCPTTrainingArguments, name):
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` is an option of Eqs. 4-6, whose place "
                    f"`weighting={self.weighting!r}` takes: leave out one of the two."
                )
        for name, needed in WEIGHTING_OPTIONS.items():
            value = getattr(self, name)
            chosen = self.weighting, self.gradient_aggregator
            if value != getattr(JSCPTTrainingArguments, name) and not set(chosen) & set(needed):
                words = [f"`weighting={each!r}`" for each in needed]
                words += [f"`gradient_aggregator={each!r}`" for each in needed if each in AGGREGATORS]
                raise ValueError(f"`{name}={value!r}` needs {' or '.join(words)}: leave it out.")
        if self.hvp == "finite_difference" and self.hypergradient_dtype != "float32":
            raise ValueError(
                f"`hypergradient_dtype={self.hypergradient_dtype!r}` would leave nothing of a finite difference: use "
                "`hvp='exact'`, or 'float32'."
            )

    def optimizer(self, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """Class and keywords, as `Trainer` chooses them; SGD gets `momentum`, which `Trainer` has no argument for."""
        optimizer, keywords = Trainer.get_optimizer_cls_and_kwargs(self, model)
        return optimizer, {"momentum": self.momentum, **keywords} if optimizer is torch.optim.SGD else keywords

    @property
    def needs_a_metric(self) -> bool:
        """Whether something besides keeping the best checkpoint hangs on `metric_for_best_model`."""
        compared = self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST
        chosen = self.metric_for_best_model != DEFAULT_METRIC
        return compared or chosen or self.lr_scheduler_type in WATCHING_A_METRIC

    @property
    def sampler_seed(self) -> int:
        """Decides which images a step takes."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def keeps_lower_graph(self) -> bool:
        """Whether the graph of an undivided lower step serves the Hessian-vector products too (every M-th step)."""
        apart = self.hypergradient_batch_size is not None or self.hypergradient_chunk_size is not None
        return self.neumann_terms > 0 and self.hvp == "exact" and not apart
