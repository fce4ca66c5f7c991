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
from jscpt_peft.scheduling import GradientAggregator, InverseHVP, TaskPromptScheduler

from .arguments import JSCPTTrainingArguments
from .hessian import HessianProduct, KeptGraph, hessian_chunks
from .implicit_gradient import dev_gradient, implicit_gradient
from .lost_processes import ignore_interrupts
from .task_gradients import Batch, TaskMeans

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class UpperStep:
    """What an update of Ω reports.

    Attributes:
        dev_loss: Σ_i L_i on the dev batch (Eq. 8).
        hypergradient_norm: norm of ∇_Ω L_dev before clipping.
        inverse: the inverse-Hessian-vector product, with its step size and number of terms.
        graph_bytes: most that the graph of one Hessian-vector product held in this process.
    """

    dev_loss: float
    hypergradient_norm: float
    inverse: InverseHVP
    graph_bytes: int

    def logs(self) -> dict[str, float | int]:
        """The columns of the scheduler's history."""
        return {
            "step_size": self.inverse.step_size,
            "hypergradient_norm": self.hypergradient_norm,
            "dev_loss": self.dev_loss,
            "neumann_terms": self.inverse.terms,
            "graph_bytes": self.graph_bytes,
        }


class UpperLevel:
    """Ω = {α, β} and all that changes it.

    Args:
        task_names: [N] names, for messages.
        args: the arguments of Algorithm 1.
        dev_dataset: D_dev.
        dtype: of Ω.
        num_present: tasks that training has images of.

    Attributes:
        scheduler: `TaskPromptScheduler`, holding Ω.
        aggregator: what takes the place of the affinity factor (`gradient_aggregator`), or `None`.
        updates: how often Ω has been updated.
    """

    def __init__(
        self,
        task_names: list[str],
        args: JSCPTTrainingArguments,
        dev_dataset: ImageTaskDataset | None,
        dtype: torch.dtype = torch.float32,
        num_present: int | None = None,
    ) -> None:
        self.task_names = task_names
        self.args = args
        self.dev_dataset = dev_dataset
        self.num_present = len(task_names) if num_present is None else num_present
        self.scheduler = TaskPromptScheduler(
            len(task_names),
            affinity_direction=args.affinity_direction,
            weight_normalization=args.weight_normalization,
            parameterization=args.scheduler_parameterization,
            prompt_scheduling=args.prompt_scheduling,
            task_scheduling=args.task_scheduling,
        ).to(args.device, dtype)
        self.aggregator = None
        if args.gradient_aggregator is not None:
            self.aggregator = GradientAggregator(
                args.gradient_aggregator,
                len(task_names),
                seed=args.seed,
                cagrad_c=args.cagrad_c,
                fairgrad_alpha=args.fairgrad_alpha,
                krum_byzantine=args.krum_byzantine,
                krum_selected=args.krum_selected,
            )
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[args.scheduler_optimizer]
        self.optimizer = optimizer(self.scheduler.parameters(), lr=args.scheduler_learning_rate)
        self.updates = 0
        self._dev_batches: Iterator[dict[str, Tensor]] | None = None

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn: weights that depend on Ω, and leave to change it."""
        by_affinity = self.args.task_scheduling and self.aggregator is None
        depends = self.enough(self.num_present) and (self.args.prompt_scheduling or by_affinity)
        return self.args.learn_scheduler and depends

    def enough(self, tasks: int) -> bool:
        """Whether the weights of so many tasks depend on Ω: normalised to their sum, that of a single one does not.

        Its gradient would be rounding errors, which Adam makes whole steps of.
        """
        return tasks > (self.args.weight_normalization == "sum")

    def check(self, model: PeftModel) -> None:
        """Raises a `ValueError` where Ω is to be learned but cannot be."""
        if self.dev_dataset is None or len(self.dev_dataset) == 0:
            raise ValueError(
                "`dev_dataset` is empty: the scheduler learns from it (Eq. 11). Give one, e.g. "
                "`ImageTaskDataset(task_set.split('dev'), transform)`, or set `learn_scheduler=False`."
            )
        if self.args.hessian_parameters == "shared" and model.trained_task is not None:
            raise ValueError(
                f"`hessian_parameters` is 'shared', but `train_only({model.trained_task!r})` trains no shared "
                "prompts: use 'all', or set `learn_scheduler=False`."
            )
        dtype = next(model.get_base_model().parameters()).dtype
        if self.args.neumann_terms > 0 and dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The base model is in {dtype}, but Hessian-vector products need float32: load it with "
                "`dtype=torch.float32` (and use `bf16=True` for speed), or set `neumann_terms=0`."
            )

    def due(self, step: int) -> bool:
        """Whether optimizer step `step` (from 1) is one that updates Ω: every M-th (Algorithm 1, line 5)."""
        return self.learns and step % self.args.lower_steps == 0

    def update(
        self,
        model: PeftModel,
        batches: list[Batch],
        kept: KeptGraph | None,
        step: TaskMeans,
        weights: Tensor,
        damping: float,
    ) -> UpperStep:
        """One step of Ω against the implicit gradient (Eq. 11).

        Args:
            model: the JSCPT model.
            batches: this process's images of the lower step, whose loss gives the Hessian.
            kept: the graph of the only one of these batches, where there is one.
            step: the tasks' gradients of the whole lower step.
            weights: `[N]` φ with its graph.
            damping: λ, added to the Hessian's diagonal.
        """
        args, omega = self.args, list(self.scheduler.parameters())
        parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (args.hessian_parameters == "all" or name.endswith(".shared"))
        ]
        dev_batch = Batch.of({name: tensor.to(args.device) for name, tensor in next(self._batches()).items()})
        dev_chunks = hessian_chunks([dev_batch], None, args.hypergradient_chunk_size)
        dev, gradient = dev_gradient(model, parameters, dev_chunks)
        product = None
        if args.neumann_terms > 0:
            chunks = hessian_chunks(batches, args.hypergradient_batch_size, args.hypergradient_chunk_size)
            # A task that is not finite would carry its NaN through the graph into the others' products.
            kept = None if bool(step.nonfinite.any()) else kept
            product = HessianProduct(model, parameters, chunks, weights, args.hvp, kept)
        gradients, inverse = implicit_gradient(
            model.task_views(),
            parameters,
            step.gradients,
            weights,
            omega,
            gradient,
            product,
            terms=args.neumann_terms,
            step_size=args.neumann_step_size,
            damping=damping,
            power_iterations=args.power_iterations,
            divergence_guard=args.divergence_guard,
        )
        for parameter, each in zip(omega, gradients, strict=True):
            parameter.grad = each
        norm = float(torch.nn.utils.clip_grad_norm_(omega, args.max_hypergradient_norm or math.inf))
        if bool(dev.nonfinite.any()):
            tasks = [name for name, wrong in zip(self.task_names, dev.nonfinite, strict=True) if wrong]
            logger.warning(f"Update {self.updates + 1} of the scheduler: the dev loss of {tasks} is not finite.")
        if math.isfinite(norm) and bool(dev.usable.any()):
            self._step()
        else:
            logger.warning(f"Update {self.updates + 1} of the scheduler: its gradient is not finite, Ω stays.")
        self.updates += 1
        dev_loss = float(dev.losses[dev.usable].sum())
        return UpperStep(dev_loss, norm, inverse, product.graph_bytes if product is not None else 0)

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
                self.dev_dataset.sizes,
                self.args.dev_batch_size or self.args.per_device_train_batch_size,
                self.args.sampler_seed + 1,
                rank=self.args.process_index,
                world_size=self.args.world_size,
            )
            endless = (sampler.batch(number) for number in itertools.count(self.updates))
            workers = min(1, self.args.dataloader_num_workers)
            loader = DataLoader(
                self.dev_dataset,
                batch_sampler=endless,
                collate_fn=collate,
                num_workers=workers,
                worker_init_fn=ignore_interrupts,
                timeout=self.args.dataloader_timeout if workers else 0,
                generator=torch.Generator(),  # the loader draws a seed: not from the global state, which is resumed
            )
            self._dev_batches = iter(loader)
        return self._dev_batches

    def forget_batches(self) -> None:
        """The next dev batch is that of the next update, whatever has been fetched ahead."""
        self._dev_batches = None

    def state_dict(self) -> dict[str, Any]:
        """Ω, its optimizer and the number of updates, for a checkpoint that loads with `weights_only=True`."""
        return {
            "scheduler": self.scheduler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "aggregator": {} if self.aggregator is None else self.aggregator.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.scheduler.load_state_dict(state["scheduler"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        if self.aggregator is not None:
            self.aggregator.load_state_dict(state.get("aggregator", {}))
        self.forget_batches()
