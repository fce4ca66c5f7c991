"""`JSCPTTrainer`: Algorithm 1 of the paper as a `Trainer`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.utils import logging

from jscpt_peft.data import ImageTaskDataset, TaskBalancedBatchSampler, collate
from jscpt_peft.evaluation import MultiTaskAccuracy, SchedulerHistory
from jscpt_peft.model import JSCPTModel
from jscpt_peft.scheduling import TaskPromptScheduler, affinity_from_gramian, causal_effect, gradient_cosine

from .arguments import JSCPTTrainingArguments
from .callbacks import SetEpoch
from .task_gradients import TaskMeans, TaskSums, scheduled_gradient, shared_prompt_gradients, task_gradients
from .upper_level import UpperStep, dev_gradient, implicit_gradient, twice_differentiable

logger = logging.get_logger(__name__)

HISTORY_FILE = "scheduler_history.jsonl"
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
        task_scheduler: `TaskPromptScheduler`, holding Ω.
        scheduler_updates: how often Ω has been updated.

    Raises:
        TypeError: `model` is not a JSCPT model.
        ValueError: `dev_dataset` is missing or empty although Ω is learned, or the base model's precision does not
            allow second derivatives.
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
        if not isinstance(getattr(model, "base_model", None), JSCPTModel):
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
        self.dev_dataset = dev_dataset
        self.task_names = model.task_names
        self.task_scheduler = TaskPromptScheduler(
            len(self.task_names),
            affinity_direction=args.affinity_direction,
            weight_normalization=args.weight_normalization,
            parameterization=args.scheduler_parameterization,
            prompt_scheduling=args.prompt_scheduling,
            task_scheduling=args.task_scheduling,
        ).to(args.device)
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[args.scheduler_optimizer]
        self.scheduler_optimizer = optimizer(self.task_scheduler.parameters(), lr=args.scheduler_learning_rate)
        self.scheduler_updates = 0
        self._sums: TaskSums | None = None
        self._rows: list[dict[str, Any]] = []
        self._history: SchedulerHistory | None = None
        self._dev_batches: Iterator[dict[str, Tensor]] | None = None
        self._nonfinite_steps = 0
        if self._learns_scheduler:
            self._check_upper_level()

    @property
    def _learns_scheduler(self) -> bool:
        return self.args.schedules and self.args.learn_scheduler and self.train_dataset is not None

    def _check_upper_level(self) -> None:
        if self.dev_dataset is None or len(self.dev_dataset) == 0:
            raise ValueError(
                "`dev_dataset` is empty: the scheduler learns from it (Eq. 11). Give one, e.g. "
                "`ImageTaskDataset(task_set.split('dev'), transform)`, or set `learn_scheduler=False`."
            )
        dtype = next(self.model.get_base_model().parameters()).dtype
        if self.args.neumann_terms > 0 and dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The base model is in {dtype}, but Hessian-vector products need float32: load it with "
                "`dtype=torch.float32` (and use `bf16=True` for speed), or set `neumann_terms=0`."
            )

    # ---- data -------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches with `per_device_train_batch_size` images of every task, sharded by process."""
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing: training needs one.")
        sampler = self._sampler(self.train_dataset, self.args.per_device_train_batch_size, self.args.seed)
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

    def _sampler(self, dataset: ImageTaskDataset, batch_size: int, seed: int) -> TaskBalancedBatchSampler:
        sizes = [len(task) for task in dataset.datasets]
        return TaskBalancedBatchSampler(
            sizes, batch_size, seed, rank=self.args.process_index, world_size=self.args.world_size
        )

    def _next_dev_batch(self) -> dict[str, Tensor]:
        """The dev batch of this update of Ω: a pure function of (seed, updates so far, rank)."""
        if self._dev_batches is None:
            batch_size = self.args.dev_batch_size or self.args.per_device_train_batch_size
            sampler = self._sampler(self.dev_dataset, batch_size, self.args.seed + 1)
            endless = (sampler.batch(number) for number in itertools.count(self.scheduler_updates))
            workers = min(1, self.args.dataloader_num_workers)
            loader = DataLoader(
                self.dev_dataset, batch_sampler=endless, collate_fn=self.data_collator, num_workers=workers
            )
            self._dev_batches = iter(loader)
        return self._prepare_inputs(next(self._dev_batches))

    # ---- the lower level (Algorithm 1, lines 4-9) -------------------------------------------------------------------

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Gradients of one micro-batch; with the last of a step, Δ, A, φ, where due Ω, and the scheduled gradient."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        last = self.accelerator.sync_gradients
        upper = last and self._learns_scheduler and (self.state.global_step + 1) % self.args.lower_steps == 0
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
        micro_losses = (detached.losses / detached.counts)[detached.counts > 0]
        return micro_losses.mean() / self.current_gradient_accumulation_steps

    def _finish_step(self, step: TaskMeans, lower: TaskMeans | None, views: dict[str, Tensor]) -> None:
        """Eqs. 4-6 and 9 for the whole step; with `lower`, its last micro-batch and graph, also Eqs. 10-11."""
        effect = causal_effect(step.reference_losses, step.losses, self.args.causal_effect)
        shared = shared_prompt_gradients(step.gradients, self.model.active_jscpt_config.num_shared_tokens)
        gramian = shared.float() @ shared.float().T
        affinity = affinity_from_gramian(gramian, self.args.affinity)
        weights = self.task_scheduler(effect.float(), affinity, step.usable)
        self._guard(step)
        upper = None if lower is None else self._update_scheduler(step, lower, views, weights)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = scheduled_gradient(self.model.task_views(), parameters, step.gradients, weights.detach())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._rows.append(
            {
                "step": self.state.global_step + 1,
                "loss": step.losses,
                "causal_effect": effect,
                "weight": weights.detach(),
                "alpha": self.task_scheduler.alpha.detach().clone(),
                "beta": self.task_scheduler.beta.detach().clone(),
                "affinity": affinity,
                "gradient_cosine": gradient_cosine(gramian),
                "gradient_norm": torch.stack([gradient.norm() for gradient in gradients]).norm(),
                "scheduler": None if upper is None else upper.logs(),
            }
        )

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

    # ---- the upper level (Algorithm 1, lines 10-12) -----------------------------------------------------------------

    def _update_scheduler(
        self, step: TaskMeans, lower: TaskMeans, views: dict[str, Tensor], weights: Tensor
    ) -> UpperStep:
        parameters = [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and (self.args.hessian_parameters == "all" or name.endswith(".shared"))
        ]
        batch = self._next_dev_batch()
        dev_loss, dev = dev_gradient(self.model, parameters, batch["pixel_values"], batch["task_ids"], batch["labels"])
        omega = list(self.task_scheduler.parameters())
        gradients, inverse = implicit_gradient(
            views,
            parameters,
            lower.gradients,
            step.gradients,
            weights,
            omega,
            dev,
            terms=self.args.neumann_terms,
            step_size=self.args.neumann_step_size,
            damping=self.args.weight_decay,
            power_iterations=self.args.power_iterations,
        )
        for parameter, gradient in zip(omega, gradients, strict=True):
            parameter.grad = gradient
        limit = self.args.max_hypergradient_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(omega, limit))
        if math.isfinite(norm):
            self._step_scheduler()
        else:
            logger.warning(f"Step {self.state.global_step + 1}: the hypergradient is not finite; Ω is left as it is.")
        self.scheduler_updates += 1
        return UpperStep(float(dev_loss), norm, inverse)

    def _step_scheduler(self) -> None:
        positive = [bool((vector > 0).all()) for vector in (self.task_scheduler.alpha, self.task_scheduler.beta)]
        self.scheduler_optimizer.step()
        for name, was in zip(("alpha", "beta"), positive, strict=True):
            values = getattr(self.task_scheduler, name).detach()
            if was and not bool((values > 0).all()):
                tasks = [task for task, value in zip(self.task_names, values, strict=True) if value <= 0]
                logger.warning(
                    f"Step {self.state.global_step + 1}: {name} of {tasks} is no longer positive, so that what "
                    "helps a task lowers its weight. `scheduler_parameterization='softplus'` keeps it positive."
                )

    # ---- optimizer, evaluation, logging, checkpoints ----------------------------------------------------------------

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: JSCPTTrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """`Trainer`'s optimizer; plain SGD gets `momentum`, which `Trainer` has no argument for."""
        optimizer, keywords = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if optimizer is torch.optim.SGD:
            keywords = {"momentum": args.momentum, **keywords}
        return optimizer, keywords

    def prediction_step(
        self,
        model: torch.nn.Module,  # noqa: ARG002
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        """Loss, logits `[B, C]` and `(labels, task_ids[, groups])` of one batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self.model.classify(inputs["pixel_values"], inputs["task_ids"], inputs["labels"])
        if prediction_loss_only:
            return output.loss, None, None
        names = [name for name in ("labels", "task_ids", "groups") if name in inputs]
        return output.loss, output.logits, tuple(inputs[name] for name in names)

    def _accuracies(self, prediction: EvalPrediction) -> dict[str, float]:
        labels, task_ids, *groups = prediction.label_ids
        return MultiTaskAccuracy(self.task_names).compute(
            predictions=prediction.predictions.argmax(-1),
            references=labels,
            task_ids=task_ids,
            groups=groups[0] if groups else None,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what Algorithm 1 did since the last log, and writes the scheduler's history."""
        if self._rows:
            logs.update(self._drain_rows())
        super().log(logs, start_time)

    def _drain_rows(self) -> dict[str, float]:
        rows, self._rows = self._rows, []
        others = max(len(self.task_names) - 1, 1)
        series = {
            name: torch.stack([row[name] for row in rows]).float().cpu()
            for name in ("loss", "causal_effect", "weight", "affinity")
        }
        series["affinity"] = series["affinity"].sum(1) / others  # mean over the sources of each task
        means = {name: values.nanmean(0) for name, values in series.items()}
        latest = {name: rows[-1][name] for name in ("alpha", "beta")}
        logs = {
            f"{name}/{task}": float(value)
            for name, values in {**means, **latest}.items()
            for task, value in zip(self.task_names, values, strict=True)
        }
        updates = [row["scheduler"] for row in rows if row["scheduler"] is not None]
        if updates:
            logs.update({f"scheduler/{name}": value for name, value in updates[-1].items()})
        if self.is_world_process_zero():
            self._write_history(rows)
        return logs

    def _write_history(self, rows: list[dict[str, Any]]) -> None:
        if self._history is None:
            path = Path(self.args.output_dir, HISTORY_FILE)
            self._history = SchedulerHistory(path, self.task_names, resume_step=rows[0]["step"] - 1)
        for row in rows:
            row = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in row.items()}
            self._history.append(epoch=row["step"] / self._steps_per_epoch(), **row)

    def _steps_per_epoch(self) -> int:
        batches = len(self.callback_handler.train_dataloader)
        return math.ceil(batches / self.args.gradient_accumulation_steps)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {
                "scheduler": self.task_scheduler.state_dict(),
                "optimizer": self.scheduler_optimizer.state_dict(),
                "updates": self.scheduler_updates,
            }
            torch.save(state, Path(output_dir, SCHEDULER_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint, SCHEDULER_FILE), map_location=self.args.device, weights_only=True)
            self.task_scheduler.load_state_dict(state["scheduler"])
            self.scheduler_optimizer.load_state_dict(state["optimizer"])
            self.scheduler_updates = state["updates"]
            self._dev_batches = None
