"""The upper level: Ω, its optimizer, and one update by the implicit gradient (Algorithm 1, lines 10-12)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.utils import logging

from jscpt_peft.data import ImageTaskDataset, TaskBalancedBatchSampler, collate
from jscpt_peft.model.intervention import Views
from jscpt_peft.scheduling import InverseHVP, TaskPromptScheduler

from .arguments import JSCPTTrainingArguments
from .implicit_gradient import dev_gradient, implicit_gradient
from .task_gradients import TaskMeans

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class UpperStep:
    """What an update of Ω reports.

    Attributes:
        dev_loss: Σ_i L_i on the dev batch (Eq. 8).
        hypergradient_norm: norm of ∇_Ω L_dev before clipping.
        inverse: the inverse-Hessian-vector product, with its step size and number of terms.
    """

    dev_loss: float
    hypergradient_norm: float
    inverse: InverseHVP

    def logs(self) -> dict[str, float | int]:
        """The columns of the scheduler's history."""
        return {
            "step_size": self.inverse.step_size,
            "hypergradient_norm": self.hypergradient_norm,
            "dev_loss": self.dev_loss,
            "neumann_terms": self.inverse.terms,
        }


class UpperLevel:
    """Ω = {α, β} and all that changes it.

    Args:
        task_names: [N] names, for messages.
        args: the arguments of Algorithm 1.
        dev_dataset: D_dev.

    Attributes:
        scheduler: `TaskPromptScheduler`, holding Ω.
        updates: how often Ω has been updated.
    """

    def __init__(
        self, task_names: list[str], args: JSCPTTrainingArguments, dev_dataset: ImageTaskDataset | None
    ) -> None:
        self.task_names = task_names
        self.args = args
        self.dev_dataset = dev_dataset
        self.scheduler = TaskPromptScheduler(
            len(task_names),
            affinity_direction=args.affinity_direction,
            weight_normalization=args.weight_normalization,
            parameterization=args.scheduler_parameterization,
            prompt_scheduling=args.prompt_scheduling,
            task_scheduling=args.task_scheduling,
        ).to(args.device)
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[args.scheduler_optimizer]
        self.optimizer = optimizer(self.scheduler.parameters(), lr=args.scheduler_learning_rate)
        self.updates = 0
        self._dev_batches: Iterator[dict[str, Tensor]] | None = None

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn: weights that depend on Ω, and leave to change it."""
        return self.args.learn_scheduler and (self.args.prompt_scheduling or self.args.task_scheduling)

    def check(self, model: PeftModel) -> None:
        """Raises a `ValueError` where Ω is to be learned but cannot be."""
        if self.dev_dataset is None or len(self.dev_dataset) == 0:
            raise ValueError(
                "`dev_dataset` is empty: the scheduler learns from it (Eq. 11). Give one, e.g. "
                "`ImageTaskDataset(task_set.split('dev'), transform)`, or set `learn_scheduler=False`."
            )
        dtype = next(model.get_base_model().parameters()).dtype
        if self.args.neumann_terms > 0 and dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The base model is in {dtype}, but Hessian-vector products need float32: load it with "
                "`dtype=torch.float32` (and use `bf16=True` for speed), or set `neumann_terms=0`."
            )

    def update(self, model: PeftModel, views: Views, lower: TaskMeans, step: TaskMeans, weights: Tensor) -> UpperStep:
        """One step of Ω against the implicit gradient (Eq. 11).

        Args:
            model: the JSCPT model.
            views: the views that `lower` was made with.
            lower: the lower micro-batch whose loss gives the Hessian, its gradients with their graph.
            step: the tasks' gradients of the whole lower step.
            weights: `[N]` φ with its graph.
        """
        parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (self.args.hessian_parameters == "all" or name.endswith(".shared"))
        ]
        omega = list(self.scheduler.parameters())
        batch = {name: tensor.to(self.args.device) for name, tensor in next(self._batches()).items()}
        dev_loss, dev = dev_gradient(model, parameters, batch["pixel_values"], batch["task_ids"], batch["labels"])
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
        norm = float(torch.nn.utils.clip_grad_norm_(omega, self.args.max_hypergradient_norm or math.inf))
        if math.isfinite(norm):
            self._step()
        else:
            logger.warning(f"Update {self.updates + 1} of the scheduler: its gradient is not finite, Ω stays.")
        self.updates += 1
        return UpperStep(float(dev_loss), norm, inverse)

    def _step(self) -> None:
        names = ("alpha", "beta")
        before = [getattr(self.scheduler, name).detach().clone() for name in names]
        self.optimizer.step()
        for name, old in zip(names, before, strict=True):
            new = getattr(self.scheduler, name).detach()
            turned = [task for task, was, now in zip(self.task_names, old, new, strict=True) if was > 0 >= now]
            if turned:
                logger.warning(
                    f"Update {self.updates + 1} of the scheduler: {name} of {turned} is no longer positive, so that "
                    "what helps a task lowers its weight. `scheduler_parameterization='softplus'` keeps it positive."
                )

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Dev batches, each a pure function of (seed, updates so far, rank)."""
        if self._dev_batches is None:
            sampler = TaskBalancedBatchSampler(
                [len(task) for task in self.dev_dataset.datasets],
                self.args.dev_batch_size or self.args.per_device_train_batch_size,
                self.args.seed + 1,
                rank=self.args.process_index,
                world_size=self.args.world_size,
            )
            endless = (sampler.batch(number) for number in itertools.count(self.updates))
            workers = min(1, self.args.dataloader_num_workers)
            loader = DataLoader(self.dev_dataset, batch_sampler=endless, collate_fn=collate, num_workers=workers)
            self._dev_batches = iter(loader)
        return self._dev_batches

    def state_dict(self) -> dict[str, Any]:
        """Ω, its optimizer and the number of updates, for a checkpoint that loads with `weights_only=True`."""
        return {
            "scheduler": self.scheduler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.scheduler.load_state_dict(state["scheduler"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self._dev_batches = None
