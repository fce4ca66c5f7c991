"""`JSCPTTrainer`: Algorithm 1 of the paper as a `Trainer`."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from jscpt_peft.data import ImageTaskDataset, TaskBalancedBatchSampler, collate, read_column
from jscpt_peft.evaluation import MultiTaskAccuracy
from jscpt_peft.model import JSCPTModel

from .arguments import JSCPTTrainingArguments
from .callbacks import SetEpoch
from .implicit_gradient import twice_differentiable
from .schedule import schedule
from .step_log import HISTORY_FILE, StepLog
from .task_gradients import TaskMeans, TaskSums, scheduled_gradient, task_gradients
from .upper_level import UpperLevel

logger = logging.get_logger(__name__)

SCHEDULER_FILE = "task_scheduler.pt"


class JSCPTTrainer(Trainer):
    """Trains the prompts of a JSCPT model with scheduled gradients, and the scheduler with implicit gradients.

    A lower step computes every task's loss and gradient in one backward, the causal effects Δ (Eq. 4), the affinities
    A (Eq. 5) and the weights φ (Eq. 6), and updates θ with `Σ_i φ_i ∇_θ L_i` (Eq. 9). Every `lower_steps`-th step
    first updates Ω = {α, β} by the implicit gradient of the loss on D_dev (Eqs. 10-11), reusing its own graph.

    Args:
        model: a `PeftModel` made with a `JSCPTConfig`.
        args: `JSCPTTrainingArguments`.
        train_dataset: training images of all tasks, with the training transform.
        dev_dataset: images of D_dev, disjoint from training and model selection, with the test transform.
        eval_dataset: images of model selection.
        processing_class: saved beside checkpoints, as in `Trainer`.
        kwargs: further arguments of `Trainer`.

    Attributes:
        upper_level: Ω (`upper_level.scheduler`), its optimizer and the number of its updates.

    Raises:
        TypeError: `model` is not a JSCPT model.
        ValueError: the datasets' tasks are not the model's, `dev_dataset` is missing or empty although Ω is learned,
            or the base model's precision does not allow second derivatives.
    """

    def __init__(
        self,
        model: PeftModel,
        args: JSCPTTrainingArguments,
        train_dataset: ImageTaskDataset | None = None,
        dev_dataset: ImageTaskDataset | None = None,
        eval_dataset: ImageTaskDataset | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if not (isinstance(model, PeftModel) and isinstance(model.base_model, JSCPTModel)):
            raise TypeError(
                f"`model` must be a PeftModel made by `get_peft_model(clip, JSCPTConfig(...))`, got {type(model)}."
            )
        kwargs.setdefault("data_collator", collate)
        kwargs.setdefault("compute_metrics", self._accuracies)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean: nothing is to be divided by a number of items
        self.task_names = model.task_names
        for name, dataset in {"train": train_dataset, "dev": dev_dataset, "eval": eval_dataset}.items():
            if dataset is not None:
                check_tasks(f"{name}_dataset", dataset, model.active_jscpt_config.tasks)
        self.upper_level = UpperLevel(self.task_names, args, dev_dataset)
        if train_dataset is not None and self.upper_level.learns:
            self.upper_level.check(model)
        history = Path(args.output_dir, HISTORY_FILE) if self.is_world_process_zero() else None
        self.step_log = StepLog(self.task_names, history)
        self._sums: TaskSums | None = None
        self._nonfinite_steps = 0

    def get_train_dataloader(self) -> DataLoader:
        """Batches with `per_device_train_batch_size` images of every task, sharded by process."""
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing: training needs one.")
        sampler = TaskBalancedBatchSampler(
            [len(task) for task in self.train_dataset.datasets],
            self.args.per_device_train_batch_size,
            self.args.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        self.pop_callback(SetEpoch)
        self.add_callback(SetEpoch(sampler))
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`; nothing is left over from a run that was broken off."""
        self._sums, self._nonfinite_steps = None, 0
        return super().train(*args, **kwargs)

    # ---- Algorithm 1 ------------------------------------------------------------------------------------------------

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        _num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Gradients of one micro-batch; with the last of a step, Δ, A, φ, where due Ω, and the scheduled gradient."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        last = self.accelerator.sync_gradients
        upper = last and self.upper_level.learns and (self.state.global_step + 1) % self.args.lower_steps == 0
        second_order = upper and self.args.neumann_terms > 0
        # Around the backward passes too: a checkpointed block runs again within them, and must choose the same kernel.
        with twice_differentiable(self.args.device.type) if second_order else nullcontext():
            sums, views = task_gradients(
                self.model,
                inputs["pixel_values"],
                inputs["task_ids"],
                inputs["labels"],
                reference=self.args.reference,
                create_graph=second_order,
                forward_context=None if second_order else self.compute_loss_context_manager(),
            )
            detached = sums.detach()
            self._sums = detached if self._sums is None else self._sums + detached
            if last:
                step, self._sums = self._sums.means(), None
                self._finish_step(step, sums.means() if upper else None, views)
        losses = (detached.losses / detached.counts)[detached.counts > 0]
        return losses.mean() / self.current_gradient_accumulation_steps

    def _finish_step(self, step: TaskMeans, lower: TaskMeans | None, views: dict[str, Tensor]) -> None:
        """Eqs. 4-6 and 9 for the whole step; with `lower`, its last micro-batch and graph, first Eqs. 10-11."""
        self._guard(step)
        number = self.state.global_step + 1
        num_shared = self.model.active_jscpt_config.num_shared_tokens
        scheduler = self.upper_level.scheduler
        plan = schedule(step, scheduler, num_shared, self.args.causal_effect, self.args.affinity)
        upper = None if lower is None else self.upper_level.update(self.model, views, lower, step, plan.weights)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = scheduled_gradient(self.model.task_views(), parameters, step.gradients, plan.weights.detach())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.step_log.append(number, number / self._steps_per_epoch(), step, plan, scheduler, gradients, upper)

    def _guard(self, step: TaskMeans) -> None:
        """Counts steps in a row in which a task is not finite; its weight is zero, and too many stop the run."""
        if not bool(step.nonfinite.any()):
            self._nonfinite_steps = 0
            return
        self._nonfinite_steps += 1
        tasks = [name for name, wrong in zip(self.task_names, step.nonfinite, strict=True) if wrong]
        logger.warning(
            f"Step {self.state.global_step + 1}: loss or gradient of {tasks} is not finite; weight 0 in this step "
            f"({self._nonfinite_steps} in a row)."
        )
        if self._nonfinite_steps >= self.args.max_nonfinite_steps:
            self._save_checkpoint(self.model, trial=None)
            raise FloatingPointError(
                f"The loss of {tasks} was not finite in {self._nonfinite_steps} steps in a row "
                f"(`max_nonfinite_steps`). The last good state is saved in {self.args.output_dir}. Lower "
                "`learning_rate`, or look at these tasks' images."
            )

    def _steps_per_epoch(self) -> int:
        batches = len(self.callback_handler.train_dataloader)
        return math.ceil(batches / self.args.gradient_accumulation_steps)

    # ---- Trainer ----------------------------------------------------------------------------------------------------

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: JSCPTTrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """`Trainer`'s optimizer; plain SGD gets `momentum`, which `Trainer` has no argument for."""
        optimizer, keywords = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if optimizer is torch.optim.SGD:
            keywords = {"momentum": args.momentum, **keywords}
        return optimizer, keywords

    def prediction_step(
        self,
        _model: torch.nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 (Trainer passes it by name)
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        """Loss, logits `[B, C]` and `(labels, task_ids[, groups])` of one batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self.model.classify(inputs["pixel_values"], inputs["task_ids"], inputs["labels"])
        # The mean over images, which `Trainer` weighs by their number; that over tasks would depend on the batches.
        loss = cross_entropy(output.logits, inputs["labels"])
        if prediction_loss_only:
            return loss, None, None
        names = [name for name in ("labels", "task_ids", "groups") if name in inputs]
        return loss, output.logits, tuple(inputs[name] for name in names)

    def _accuracies(self, prediction: EvalPrediction) -> dict[str, float]:
        labels, task_ids, *groups = prediction.label_ids
        return MultiTaskAccuracy(self.task_names).compute(
            predictions=prediction.predictions.argmax(-1),
            references=labels,
            task_ids=task_ids,
            groups=groups[0] if groups else None,
        )

    def compute_loss_context_manager(self) -> AbstractContextManager:
        """Autocast: accelerate puts it around `model.forward` alone, which is not what computes the losses here."""
        return self.accelerator.autocast()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training logs what Algorithm 1 did since the last one, and writes the scheduler's history."""
        self.step_log.flush()
        super().log({**logs, **self.step_log.drain()} if "loss" in logs else logs, start_time)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.step_log.flush()  # a run that goes on from here finds its history whole
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.upper_level.state_dict(), Path(output_dir, SCHEDULER_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, SCHEDULER_FILE)
        if not path.exists():
            logger.warning(f"{path} does not exist (saved with `save_only_model`?): the scheduler starts anew.")
            return
        self.upper_level.load_state_dict(torch.load(path, map_location=self.args.device, weights_only=True))


def check_tasks(argument: str, dataset: ImageTaskDataset, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` where the data cannot be those of the model's tasks."""
    if len(dataset.datasets) != len(tasks):
        raise ValueError(
            f"`{argument}` has {len(dataset.datasets)} tasks, the model has {len(tasks)} ({list(tasks)}): make the "
            "model with `JSCPTConfig(tasks=task_set.class_names)`."
        )
    for (name, classes), task in zip(tasks.items(), dataset.datasets, strict=True):
        largest = max(read_column(task, "label"), default=-1)
        if largest >= len(classes):
            raise ValueError(
                f"`{argument}` has label {largest} in task {name!r}, for which the model has {len(classes)} classes: "
                "make the model with `JSCPTConfig(tasks=task_set.class_names)`."
            )
