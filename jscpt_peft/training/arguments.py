"""`JSCPTTrainingArguments`: `TrainingArguments` plus Algorithm 1."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.utils import strtobool

from jscpt_peft.choices import check_choice
from jscpt_peft.scheduling import AGGREGATORS, NEUTRAL_EFFECT
from jscpt_peft.scheduling.affinity import AFFINITIES
from jscpt_peft.scheduling.scheduler import AFFINITY_DIRECTIONS, PARAMETERIZATIONS, WEIGHT_NORMALIZATIONS

from .distributed import join_on_cpu
from .hessian import HESSIAN_PRODUCTS

REFERENCES = ("original", "complement")
HESSIAN_PARAMETERS = ("all", "shared")
SCHEDULER_OPTIMIZERS = ("adam", "sgd")
WATCHING_A_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
DEFAULT_METRIC = "mean_accuracy"


@dataclass
class JSCPTTrainingArguments(TrainingArguments):
    """Arguments of `JSCPTTrainer`: those of `TrainingArguments`, with the paper's defaults, and those of Algorithm 1.

    `per_device_train_batch_size` counts images of *every* task: a step takes B images of each.

    Raises:
        ValueError: an argument is out of its range or asks for what the bi-level loop cannot do (fp16, FSDP,
            DeepSpeed, several GPUs in one process, reentrant checkpointing, label smoothing, evaluation in half
            precision throughout, a batch size found by trial).
    """

    _argument_group_name: ClassVar[str] = "training"

    # ---- TrainingArguments with other defaults (paper, section 4.1) ----
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images of every task in a step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images in an evaluation step."})
    num_train_epochs: float = field(default=50.0, metadata={"help": "Passes over the largest task."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Learning rate η₁ of the prompts."})
    optim: str = field(default="sgd", metadata={"help": "Optimizer of the prompts."})
    momentum: float = field(default=0.9, metadata={"help": "Momentum of --optim sgd."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float | None = field(
        default=None,
        metadata={"help": "Warm-up steps, or a part of all steps if below 1. Default: one epoch; 0 with --max_steps."},
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the gradient of the prompts; 0 does not."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the batches are made here."}
    )
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Must stay as it is."})

    metric_for_best_model: str | None = field(
        default=DEFAULT_METRIC, metadata={"help": "What --load_best_model_at_end compares."}
    )
    dataloader_timeout: int = field(
        default=600, metadata={"help": "Seconds to wait for a data worker's batch before it counts as dead."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "A resumed run takes its callbacks' states (early stopping's patience) along."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into an output directory in use."})

    # ---- the scheduler (Eqs. 4-6) ----
    prompt_scheduling: bool = field(default=True, metadata={"help": "Weigh tasks by causal effect (Eq. 4)."})
    task_scheduling: bool = field(default=True, metadata={"help": "Weigh tasks by inter-task affinity (Eq. 5)."})
    causal_effect: str = field(default="literal", metadata={"help": "Eq. 4: literal, σ(exp(d)), or sigmoid, σ(d)."})
    reference: str = field(
        default="original", metadata={"help": "What Eq. 4 compares x̄ with: original, x, or complement, (1-M)∘x."}
    )
    affinity: str = field(default="clipped", metadata={"help": "Eq. 5: clipped to [-1, 1], cosine or unclipped."})
    affinity_direction: str = field(default="incoming", metadata={"help": "A[:, i] (incoming) or A[i, :] (outgoing)."})
    weight_normalization: str = field(
        default="sum", metadata={"help": "sum: the weights sum to the number of tasks; none: Eq. 6 as printed."}
    )
    scheduler_parameterization: str = field(
        default="unconstrained", metadata={"help": "unconstrained, or softplus, which keeps α and β positive."}
    )
    gradient_aggregator: str | None = field(
        default=None,
        metadata={
            "help": "Weights of TorchJD instead of the affinity factor, from the shared prompts' gradients: "
            f"{', '.join(AGGREGATORS)}. Needs jscpt-peft[aggregators]."
        },
    )
    cagrad_c: float = field(default=0.5, metadata={"help": "c of --gradient_aggregator cagrad."})
    fairgrad_alpha: float = field(default=1.0, metadata={"help": "α of --gradient_aggregator fairgrad."})
    krum_byzantine: int = field(
        default=0, metadata={"help": "Tasks that --gradient_aggregator krum distrusts; it needs 3 tasks more."}
    )
    krum_selected: int = field(default=1, metadata={"help": "Tasks that --gradient_aggregator krum selects."})

    # ---- the upper level (Eqs. 8-11) ----
    learn_scheduler: bool = field(default=True, metadata={"help": "Update Ω = {α, β}; without, it stays at 1."})
    lower_steps: int = field(default=10, metadata={"help": "M: lower steps between two updates of Ω."})
    neumann_terms: int = field(default=3, metadata={"help": "H of Eq. 11; 0 needs no Hessian-vector product."})
    neumann_step_size: float = field(default=1.0, metadata={"help": "Largest step size of the Neumann series."})
    power_iterations: int = field(
        default=3, metadata={"help": "Products that estimate λ_max for the step size 0.9/λ_max; 0 fixes it."}
    )
    neumann_damping: float | None = field(
        default=None, metadata={"help": "λ added to the Hessian's diagonal. Default: --weight_decay."}
    )
    divergence_guard: bool = field(
        default=True, metadata={"help": "End the Neumann series where its terms begin to grow."}
    )
    hvp: str = field(
        default="exact", metadata={"help": "Hessian-vector products: exact, or finite_difference of two gradients."}
    )
    hypergradient_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images of every task of the whole step in the Hessian. Default: all of them."},
    )
    hypergradient_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Images of one task whose graph is held at a time in the upper level, made anew for every "
            "product. Default: the lower step's graph is kept."
        },
    )
    hessian_parameters: str = field(default="all", metadata={"help": "θ of the Hessian: all, or shared prompts only."})
    scheduler_learning_rate: float = field(default=1e-2, metadata={"help": "Learning rate η₂ of Ω."})
    scheduler_optimizer: str = field(default="adam", metadata={"help": "Optimizer of Ω: adam or sgd."})
    max_hypergradient_norm: float = field(default=10.0, metadata={"help": "Clip the gradient of Ω; 0 does not."})
    dev_batch_size: int | None = field(
        default=None, metadata={"help": "Dev images of every task in an update of Ω. Default: as in training."}
    )
    max_nonfinite_steps: int = field(
        default=10, metadata={"help": "Stop after so many steps in a row with a task whose loss is not finite."}
    )

    def __post_init__(self) -> None:
        if self.warmup_steps is None:
            by_epochs = self.max_steps <= 0 and self.num_train_epochs > 0
            self.warmup_steps = min(1.0 / self.num_train_epochs, 0.5) if by_epochs else 0.0
        on_cpu = self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        if on_cpu and self.ddp_backend in (None, "gloo"):
            join_on_cpu(self.ddp_timeout)
        super().__post_init__()
        if self.lr_scheduler_type in WATCHING_A_METRIC:  # both take less for better, unless they are told
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **(self.lr_scheduler_kwargs or {})}
        self._check_choices()
        self._check_ranges()
        self._refuse()

    def _check_choices(self) -> None:
        check_choice("causal_effect", self.causal_effect, NEUTRAL_EFFECT)
        check_choice("reference", self.reference, REFERENCES)
        check_choice("affinity", self.affinity, AFFINITIES)
        check_choice("affinity_direction", self.affinity_direction, AFFINITY_DIRECTIONS)
        check_choice("weight_normalization", self.weight_normalization, WEIGHT_NORMALIZATIONS)
        check_choice("scheduler_parameterization", self.scheduler_parameterization, PARAMETERIZATIONS)
        check_choice("hvp", self.hvp, HESSIAN_PRODUCTS)
        if self.gradient_aggregator is not None:
            check_choice("gradient_aggregator", self.gradient_aggregator, AGGREGATORS)
            if not self.task_scheduling:
                raise ValueError(
                    f"`gradient_aggregator={self.gradient_aggregator!r}` takes the place of the affinity factor, "
                    "which `task_scheduling=False` switches off: leave out one of the two."
                )
        check_choice("hessian_parameters", self.hessian_parameters, HESSIAN_PARAMETERS)
        check_choice("scheduler_optimizer", self.scheduler_optimizer, SCHEDULER_OPTIMIZERS)

    def _check_ranges(self) -> None:
        for name, minimum in {
            "lower_steps": 1,
            "neumann_terms": 0,
            "power_iterations": 0,
            "max_nonfinite_steps": 1,
            "cagrad_c": 0,
            "fairgrad_alpha": 0,
            "krum_byzantine": 0,
            "krum_selected": 1,
            "neumann_damping": 0,
            "hypergradient_batch_size": 1,
            "hypergradient_chunk_size": 1,
            "dev_batch_size": 1,
            "dataloader_timeout": 0,
            "max_hypergradient_norm": 0,
        }.items():
            value = getattr(self, name)
            if value is not None and not value >= minimum:  # also where it is NaN
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
        for name in ("neumann_step_size", "scheduler_learning_rate"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")

    def _refuse(self) -> None:
        if self.n_gpu > 1:
            raise ValueError(
                f"one process trains on one device, but {self.n_gpu} GPUs are visible: start one process a GPU with "
                f"`accelerate launch --multi_gpu --num_processes {self.n_gpu}`, or set CUDA_VISIBLE_DEVICES=0."
            )
        if self.mixed_precision == "fp16":  # of `accelerate launch` too
            raise ValueError("`fp16=True` is not supported: second derivatives overflow in float16. Use `bf16=True`.")
        plugins = {"fsdp": self.fsdp, "deepspeed": self.deepspeed or self.deepspeed_plugin}
        for name, asked in plugins.items():
            launched = strtobool(os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false"))
            if asked or launched:
                where = "the configuration of `accelerate launch`" if launched else "the arguments"
                raise ValueError(
                    f"`{name}` is not supported: per-task gradients need whole parameters, which are a few MB. Leave "
                    f"it out of {where}."
                )
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor={self.label_smoothing_factor}` is not supported: L_i is the cross-entropy "
                "of Eq. 3. Leave it out."
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size=True` is not supported: batches have `per_device_train_batch_size` images of "
                "every task. Lower that where memory runs out, and take `gradient_accumulation_steps` for the rest."
            )
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}=True` is not supported: it would turn the prompts themselves into half precision. Use "
                    "`bf16=True`, which evaluates in bfloat16 too."
                )
        if self.activation_checkpointing and (self.activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "`activation_checkpointing_kwargs={'use_reentrant': True}` does not work with `torch.autograd.grad`: "
                "use `{'use_reentrant': False}`."
            )

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
