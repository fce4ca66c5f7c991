"""The upper level: Ω, its optimizer, and one update by the implicit gradient (Algorithm 1, lines 10-12)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from jscpt_peft.data import ImageTaskDataset, TaskBalancedBatchSampler, collate
from jscpt_peft.model.backbones.double_backward import upper_level_precision
from jscpt_peft.scheduling import Weighting

from .arguments import AUTO, CALIBRATED, JSCPTTrainingArguments
from .hessian import HessianProduct, KeptGraph, hessian_chunks
from .implicit_gradient import dev_gradient, implicit_gradient
from .loading import make_loader
from .own_loss import OwnLoss
from .task_gradients import Batch
from .task_sums import TaskMeans

logger = logging.get_logger(__name__)

AUTO_UPDATES = 64  # of Ω in a run, at least
AUTO_TRAVEL = 16.0  # how far α and β can move in a run


class UpperLevel:
    """Ω, the parameters of the weighting, and all that changes them.

    Args:
        weighting: holds Ω, for JSCPT {α, β}.
        task_names: [N] names, for messages.
        args: the arguments of Algorithm 1.
        dev_dataset: D_dev.
        num_present: tasks that training has images of.
        own_loss: takes the place of Eq. 3.

    Attributes:
        updates: how often Ω has been updated.
        lower_steps: M.
    """

    def __init__(
        self,
        weighting: Weighting,
        task_names: list[str],
        args: JSCPTTrainingArguments,
        dev_dataset: ImageTaskDataset | None,
        num_present: int,
        own_loss: OwnLoss | None = None,
    ) -> None:
        self.weighting = weighting
        self.task_names = task_names
        self.args = args
        self.dev_dataset = dev_dataset
        self.own_loss = own_loss
        self.learns = args.learn_scheduler and weighting.depends_on_omega(num_present)
        self.optimizer = None
        if any(True for _ in weighting.parameters()):
            optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[args.scheduler_optimizer]
            self.optimizer = optimizer(weighting.parameters(), lr=0.0)
        self.updates = 0
        self.begin(1)
        self._dev_batches: Iterator[dict[str, Tensor]] | None = None

    def check(self, model: PeftModel) -> None:
        """Raises a `ValueError` where Ω is to be learned but cannot be."""
        if self.dev_dataset is None or len(self.dev_dataset) == 0:
            raise ValueError(
                "`dev_dataset` is empty: the scheduler learns from it (Eq. 11). Give one, e.g. "
                "`ImageTaskDataset(task_set.split('dev'), transform)`, or set `learn_scheduler=False`."
            )
        if self.own_loss is not None and self.args.dev_loss == CALIBRATED:
            raise ValueError(
                f"`dev_loss` is {CALIBRATED!r}, which is a cross-entropy, but there is a `compute_loss_func`: leave "
                "one of them out."
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

    def begin(self, steps: int) -> None:
        """Sets M and η₂, which `"auto"` makes follow the length of a training of so many steps.

        M = max(1, steps // 64): at least 64 updates in a run that has so many steps, less than 128 in any longer one.
        η₂ = 16 / updates, but at most 0.25: Adam's steps are of about η₂, so that α and β can move by 16 in 64 updates
        or more; in fewer, a single D_dev batch would turn the weights over. To weigh one task 19 times as much as
        another takes a difference of 8 where Δ is near the neutral 0.73, half of what they can have.
        """
        args = self.args
        self.lower_steps = max(1, steps // AUTO_UPDATES) if args.lower_steps == AUTO else args.lower_steps
        rate = args.scheduler_learning_rate
        if rate == AUTO:
            rate = AUTO_TRAVEL / max(AUTO_UPDATES, steps // self.lower_steps)
        for group in [] if self.optimizer is None else self.optimizer.param_groups:
            group["lr"] = rate

    def due(self, step: int) -> bool:
        """Whether optimizer step `step` (from 1) is one that updates Ω: every M-th (Algorithm 1, line 5)."""
        return self.learns and step % self.lower_steps == 0

    def update(
        self,
        model: PeftModel,
        batches: list[Batch],
        kept: KeptGraph | None,
        step: TaskMeans,
        weights: Tensor,
        damping: float,
    ) -> dict[str, float | int]:
        """One step of Ω against the implicit gradient (Eq. 11).

        Args:
            model: the JSCPT model.
            batches: this process's images of the lower step, whose loss gives the Hessian.
            kept: the graph of the only one of these batches, where there is one.
            step: the tasks' gradients of the whole lower step.
            weights: `[N]` φ with its graph.
            damping: λ, added to the Hessian's diagonal.

        Returns:
            Columns of the history: the step size and number of terms of the Neumann series, the norm of ∇_Ω L_dev
            before clipping, the dev loss Σ_i L_i (Eq. 8), and the most bytes that the graph of a product held here.
        """
        args, omega = self.args, list(self.weighting.parameters())
        among = model.parameters() if args.hessian_parameters == "all" else model.task_adapter.shared_prompts()
        parameters = [parameter for parameter in among if parameter.requires_grad]
        dev_batch = Batch.checked(next(self._batches()), model.active_jscpt_config.tasks, args.device)
        dev_chunks = hessian_chunks([dev_batch], None, args.hypergradient_chunk_size)
        with upper_level_precision(args.hypergradient_dtype):
            dev, gradient = dev_gradient(model, parameters, dev_chunks, self.own_loss, args.dev_loss == CALIBRATED)
            product = None
            if args.neumann_terms > 0:
                chunks = hessian_chunks(batches, args.hypergradient_batch_size, args.hypergradient_chunk_size)
                # A task that is not finite would carry its NaN through the graph into the others' products.
                kept = None if bool(step.nonfinite.any()) else kept
                product = HessianProduct(model, parameters, chunks, weights, args.hvp, kept, self.own_loss)
            gradients, inverse = implicit_gradient(
                model.task_parameters(),  # anew: differences have moved θ there and back
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
        return {
            "step_size": inverse.step_size,
            "hypergradient_norm": norm,
            "dev_loss": float(dev.losses[dev.usable].sum()),
            "neumann_terms": inverse.terms,
            "graph_bytes": 0 if product is None else product.graph_bytes,
        }

    def _step(self) -> None:
        before = self.weighting.learned()
        self.optimizer.step()
        for name, new in self.weighting.learned().items():
            pairs = zip(self.task_names, before[name], new, strict=True)
            turned = [task for task, was, now in pairs if was > 0 >= now]
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
            # The loader draws a seed: not from the global state, which is resumed.
            options = {"most_workers": 1, "batch_sampler": endless, "generator": torch.Generator()}
            loader = make_loader(self.dev_dataset, self.args, collate, **options)
            self._dev_batches = iter(loader)
        return self._dev_batches

    def forget_batches(self) -> None:
        """The next dev batch is that of the next update, whatever has been fetched ahead."""
        self._dev_batches = None

    def state_dict(self) -> dict[str, Any]:
        """Ω, its optimizer and the number of updates, for a checkpoint that loads with `weights_only=True`."""
        return {
            "weighting": self.weighting.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.weighting.load_state_dict(state["weighting"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self.forget_batches()
