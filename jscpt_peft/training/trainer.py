"""`JSCPTTrainer`: Algorithm 1 of the paper as a `Trainer`."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from jscpt_peft.data import TaskBalancedBatchSampler, collate
from jscpt_peft.data.by_task import by_task
from jscpt_peft.model.heads import TaskParameters
from jscpt_peft.scheduling import Weighting

from .arguments import JSCPTTrainingArguments
from .bilevel import UpperLevel
from .callbacks import SaveAfterEvaluation, SetEpoch, StopOnInterrupt
from .checkpointing import Checkpointing
from .data_checks import check_data, check_model, check_same_data
from .distributed import by_first_process, process_index, world_size
from .evaluating import EvaluatingTrainer
from .guarding import Settle, TakeBack
from .hessian import KeptGraph
from .loading import make_loader
from .lost_processes import lost_processes_named
from .lower_step import LowerStep
from .output_lock import output_lock
from .own_steps import OwnSteps, check_own_steps
from .plain_arguments import own_arguments
from .publishing import Publishing
from .step_log import HISTORY_FILE, StepLog
from .task_gradients import Batch, shared_gramian
from .task_sums import TaskSums
from .weightings import chosen_weighting


class JSCPTTrainer(Publishing, Checkpointing, EvaluatingTrainer):
    """Trains the prompts of a JSCPT model with scheduled gradients, and the scheduler with implicit gradients.

    A lower step computes every task's loss and gradient in one backward, the causal effects Δ (Eq. 4), the affinities
    A (Eq. 5) and the weights φ (Eq. 6), and updates θ with `Σ_i φ_i ∇_θ L_i` (Eq. 9). Every `lower_steps`-th step
    first updates Ω = {α, β} by the implicit gradient of the loss on D_dev (Eqs. 10-11), reusing its own graph.

    Any number of processes (`accelerate launch`) train as one with their batches together would: each step's losses
    and gradients are summed by one communication, and all hold the same θ and Ω.

    Args:
        model: a `PeftModel` made with a `JSCPTConfig`; its active adapter alone is trained and saved.
        args: `JSCPTTrainingArguments`; of plain `TrainingArguments` see `plain_arguments.own_arguments`.
        data_collator: as in `Trainer`; default: `jscpt_peft.data.collate`.
        train_dataset: training images of all tasks, or of those that its `task_ids` name, with the training transform:
            an `ImageTaskDataset`, or any map-style data set whose items have `pixel_values`, `labels` and `task_ids`.
        eval_dataset: images of model selection, or several such data sets by name.
        processing_class: saved beside checkpoints, as in `Trainer`.
        dev_dataset: images of D_dev, disjoint from training and model selection, with the test transform.
        weighting: what gives the tasks' weights; default: what `args.weighting` asks for (Eqs. 4-6).
        kwargs: further arguments of `Trainer`. `model_init` makes model, scheduler and Ω anew for every training.
            `compute_loss_func(outputs, labels, num_items_in_batch)` takes the place of Eq. 3 and is called per task,
            with the `outputs.logits` `[b, C_i]` of `outputs.task_id`: it gives these images' mean loss, or one each.

    Attributes:
        weighting: what gives the tasks' weights; its parameters are Ω.
        upper_level: Ω's optimizer and the number of its updates.
        stop_asked: set it to end training, with a checkpoint, after the step under way; `stop_agreed` is then true in
            all processes (see `StopOnInterrupt`).

    Raises:
        TypeError: `model` is not a JSCPT model, a data set is not map-style, or a subclass has a `compute_loss`.
        ValueError: the datasets' tasks are not the model's, `dev_dataset` is missing or empty although Ω is learned,
            or the base model's precision does not allow second derivatives.
    """

    def __init__(
        self,
        model: PeftModel | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        dev_dataset: Any = None,
        weighting: Weighting | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("model_init") is None:
            check_model(model)
        if type(self).compute_loss is not Trainer.compute_loss:
            raise TypeError(
                "`compute_loss` is never called: one backward gives every task's gradient. Pass `compute_loss_func`, "
                "which is called per task."
            )
        args = own_arguments(args)
        kwargs.setdefault("compute_metrics", self.multi_task_accuracy)
        # Metrics of one's own, losses alone and several data sets have no mean accuracy to compare by.
        others = kwargs["compute_metrics"] != self.multi_task_accuracy or isinstance(eval_dataset, dict)
        if (others or args.prediction_loss_only) and not args.needs_a_metric:
            args.metric_for_best_model = None
        self._own_steps = OwnSteps(args)
        # Others see what a step has moved, and may ask for a log or a checkpoint before it is settled.
        callbacks = kwargs.get("callbacks") or ()
        kwargs["callbacks"] = [self._own_steps, TakeBack(self), *callbacks, SaveAfterEvaluation(), Settle(self)]
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or collate,
            train_dataset=by_task("train_dataset", train_dataset),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean: nothing is to be divided by a number of items
        self.dev_dataset = by_task("dev_dataset", dev_dataset)
        self._given_weighting = weighting
        self._set_up()
        self._forget()

    def _set_up(self) -> None:
        """What depends on the model and on the arguments of Algorithm 1."""
        model, args, data = check_model(self.model), self.args, self.train_dataset
        self.task_names, self.adapter_name = model.task_names, model.active_adapter
        check_data(model, train_dataset=data, dev_dataset=self.dev_dataset, eval_dataset=self.eval_dataset)
        weighting = chosen_weighting(self._given_weighting, args, model)
        if self.model_init is not None:
            weighting = copy.deepcopy(weighting)
        # Ω in float32, or better where θ is.
        precision = torch.promote_types(next(model.get_base_model().parameters()).dtype, torch.float32)
        self.weighting = weighting.to(args.device, precision)
        present = len(self.task_names) if data is None else len(data.sizes)
        self.upper_level = UpperLevel(
            self.weighting, self.task_names, args, self.dev_dataset, present, self.compute_loss_func
        )
        if data is not None and self.upper_level.learns:
            self.upper_level.check(model)

    def _hp_search_setup(self, trial: Any) -> None:
        """As `Trainer`'s, at the start of every training: a new model, or new arguments, want a new Ω."""
        super()._hp_search_setup(trial)
        self.args.check()
        if self.model_init is not None:
            self._set_up()
        self._prepare_adapters()
        self._forget(trial)

    def _forget(self, trial: Any = None) -> None:
        """Nothing is left over from a run that was broken off."""
        self.stop_asked = self.stop_agreed = False
        options = self.weighting.needs_reference, self.compute_loss_context_manager, self.compute_loss_func
        self.lower_step = LowerStep(self.model, self.args, *options)
        self._sums: TaskSums | None = None
        self._loss: Tensor | None = None  # the last one that is finite
        self._batches: list[Batch] = []  # of a step that updates Ω
        history = Path(self._get_output_dir(trial), HISTORY_FILE) if self.is_world_process_zero() else None
        self.step_log = StepLog(self.task_names, history)
        self.upper_level.forget_batches()

    def get_train_dataloader(self) -> DataLoader:
        """Batches with `per_device_train_batch_size` images of every task, sharded by process."""
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing: training needs one.")
        sampler = TaskBalancedBatchSampler(
            self.train_dataset.sizes,
            self.args.per_device_train_batch_size,
            self.args.sampler_seed,
            rank=process_index(),
            world_size=world_size(),
            accumulation=self.args.gradient_accumulation_steps,
        )
        self.pop_callback(SetEpoch)
        self.add_callback(SetEpoch(sampler))
        persistent = self.args.dataloader_num_workers > 0 and self.args.dataloader_persistent_workers
        options = {"batch_sampler": sampler, "persistent_workers": persistent}
        return make_loader(self.train_dataset, self.args, self.data_collator, **options)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Checkpointing.train`; where a worker, an image or a process fails, the error names it."""
        try:
            with lost_processes_named(self.args.ddp_timeout), ExitStack() as lock:
                by_first_process(lambda: lock.enter_context(output_lock(self.args.output_dir)))
                self.check_best_metric()
                check_own_steps(self.args, self.model)
                check_same_data({"train_dataset": self.train_dataset, "dev_dataset": self.dev_dataset})
                return super().train(*args, **kwargs)
        finally:
            self.upper_level.forget_batches()  # whose worker would otherwise wait for the garbage collector
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, StopOnInterrupt):
                    callback.restore_signals()

    def _prepare_adapters(self) -> None:
        """Nothing but the active adapter learns."""
        if self.model.active_adapter != self.adapter_name:
            raise ValueError(
                f"the active adapter is {self.model.active_adapter!r}, but this trainer was made for "
                f"{self.adapter_name!r}: make a new one after `set_adapter`."
            )
        self.model.base_model.freeze_other_adapters()
        if not self.trainable_parameters():
            raise ValueError(
                "no parameter of `model` is trainable: load adapters with `PeftModel.from_pretrained(..., "
                "is_trainable=True)`."
            )

    # ---- Algorithm 1 ------------------------------------------------------------------------------------------------

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        _num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Gradients of one micro-batch; with the last of a step, Δ, A, φ, where due Ω, and the scheduled gradient."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # a schedule-free one, which evaluation has switched over
            self.optimizer.train()
        batch = Batch.checked(inputs, self.model.active_jscpt_config.tasks, self.args.device)
        upper = self.upper_level.due(self.state.global_step + 1)
        keep = upper and self.args.keeps_lower_graph and self.current_gradient_accumulation_steps == 1
        sums, task_parameters, kept = self.lower_step(batch, keep)
        if upper:
            self._batches.append(batch)
        self._sums = sums if self._sums is None else self._sums + sums
        if self.accelerator.sync_gradients:
            step, self._sums = self._sums, None
            batches, self._batches = self._batches, []
            self._finish_step(step, task_parameters, batches, kept)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        loss = sums.mean_loss()
        # For the logs: in the place of a loss that is not finite the last one that was.
        self._loss = loss.where(loss.isfinite(), 0.0 if self._loss is None else self._loss)
        return self._loss / self.current_gradient_accumulation_steps

    def _finish_step(
        self, sums: TaskSums, task_parameters: TaskParameters, batches: list[Batch], kept: KeptGraph | None
    ) -> None:
        """Eqs. 4-6 and 9 for the whole step of all processes; where it updates Ω, first Eqs. 10-11."""
        sums, stop = sums.over_processes(self.stop_asked)
        step = sums.means()
        self.guard(step, stop)
        number, needed = self.state.global_step + 1, self.weighting.needs_gramian or self.args.log_gradient_cosines
        gramian = shared_gramian(self.model, step.gradients, task_parameters) if needed else None
        learned = self.weighting.learned()
        try:
            weights = self.weighting(step.signals(number, (number - 1) // self._steps_per_epoch(), gramian))
        except FloatingPointError as error:  # of an aggregator
            raise FloatingPointError(f"{error} {self.save_last_good_state()}") from error
        explanation = self.weighting.log()  # before Ω changes
        upper = None
        if batches and self.weighting.depends_on_omega(int(step.usable.sum())):
            damping = self.args.neumann_damping
            if damping is None:  # what the optimizer applies, which a resumed run has from its checkpoint
                damping = max(group.get("weight_decay", 0.0) for group in self.optimizer.param_groups)
            upper = self.upper_level.update(self.model, batches, kept, step, weights, damping)
            task_parameters = self.model.task_parameters()  # differences have moved θ there and back
        given = self.model, self.trainable_parameters(), task_parameters, step.gradients, weights.detach()
        norm = self._own_steps.give_gradients(*given)
        step.show(self.model.task_adapter.head)
        row = {"step": number, "epoch": number / self._steps_per_epoch(), "gradient_norm": norm}
        row |= {**step.columns(gramian), "weight": weights.detach(), **explanation, **learned}
        row |= {f"{name}_after": value for name, value in self.weighting.learned().items()}
        self.step_log.append({**row, "scheduler": upper})

    def _steps_per_epoch(self) -> int:
        batches = len(self.callback_handler.train_dataloader)
        return math.ceil(batches / self.args.gradient_accumulation_steps)

    # ---- Trainer ----------------------------------------------------------------------------------------------------

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: JSCPTTrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """That of the arguments."""
        return args.optimizer(model)

    def get_total_train_batch_size(self, args: JSCPTTrainingArguments) -> int:
        """Images of a step: B of every task that is trained."""
        return super().get_total_train_batch_size(args) * len(self.train_dataset.sizes)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Images of an epoch, in which short tasks come more than once."""
        sampler = dataloader.batch_sampler
        if not isinstance(sampler, TaskBalancedBatchSampler):
            return super().num_examples(dataloader)
        return len(sampler) * sampler.batch_size * len(sampler.sizes) * sampler.world_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training logs what Algorithm 1 did since the last one, and writes the scheduler's history."""
        self.lower_step.look()
        self.step_log.flush()
        super().log({**logs, **self.step_log.drain()} if "loss" in logs else logs, start_time)
