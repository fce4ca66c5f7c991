"""Weights from the tasks' gradients by TorchJD: alone, or in the place of Eq. 6's affinity factor (MT-CAGrad)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jscpt_peft.choices import check_choice

from .scheduler import normalized
from .signals import StepSignals, Weighting

AGGREGATORS = {
    "aligned_mtl": "AlignedMTLWeighting",
    "cagrad": "CAGradWeighting",
    "dualproj": "DualProjWeighting",
    "fairgrad": "FairGradWeighting",
    "gradvac": "GradVacWeighting",
    "imtl_g": "IMTLGWeighting",
    "krum": "KrumWeighting",
    "mean": "MeanWeighting",
    "mgda": "MGDAWeighting",
    "pcd": "PCDWeighting",
    "pcgrad": "PCGradWeighting",
    "random": "RandomWeighting",
    "sum": "SumWeighting",
    "upgrad": "UPGradWeighting",
}
"""Every weighting of TorchJD 0.18 that the tasks' Gramian suffices for; "mean", "sum" and "random" read its size only.

Left out: Nash-MTL limits its step by the gradients themselves, and ExcessMTL keeps a sum of their squares; MoDo and
SDMGrad want the products of gradients from two or three independent batches; ConFIG, GradDrop and TrimmedMean combine
coordinates, so that no weight belongs to a task; Constant wants one number a task; CR-MOGM smooths another weighting.
"""


class GradientAggregator:
    """One of `AGGREGATORS` for N tasks: `(Gramian, tasks present, step) -> weights [N]`.

    Gramians are scaled to a mean squared norm of 1, and the weights scaled back where that matters: TorchJD's solvers
    have absolute tolerances, below which CAGrad, for one, gives nothing but zeros. "pcd" compares the norms of
    different steps and is given them as they are; its primary objective is the first task present.

    Every present task gets weight 1 where there is nothing to weigh: fewer than two tasks (for "krum", fewer than
    `krum_byzantine + 3` or than `krum_selected`), or all gradients zero. Otherwise weights can be negative ("imtl_g",
    "aligned_mtl"), and all zero where no direction helps every task ("cagrad", "imtl_g", "pcd").

    A draw of "random", "pcgrad" and "gradvac" is a function of (seed, step) alone, and the global random state stays
    as it is. What "gradvac" and "pcd" remember belongs to the set of tasks present: a step without one of them
    (a loss that is not finite) does not disturb what is known of all.

    Args:
        name: one of `AGGREGATORS`.
        num_tasks: N.
        seed: of the draws.
        cagrad_c: c of CAGrad, the radius of its ball relative to the norm of the mean gradient.
        fairgrad_alpha: α of FairGrad's α-fairness.
        krum_byzantine: how many tasks Krum distrusts.
        krum_selected: how many tasks Krum selects, with equal weights.
        argument: what messages call `name`.

    Raises:
        ValueError: `name` is none of them, or N is too small for Krum.
        ImportError: TorchJD, or a solver that `name` needs, is not installed.

    Example:
        >>> aggregator = GradientAggregator("mgda", num_tasks=3)
        >>> gradients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        >>> aggregator(gradients @ gradients.T, torch.tensor([True, True, False]), step=1)
        tensor([0.5000, 0.5000, 0.0000])
    """

    def __init__(
        self,
        name: str,
        num_tasks: int,
        seed: int = 0,
        cagrad_c: float = 0.5,
        fairgrad_alpha: float = 1.0,
        krum_byzantine: int = 0,
        krum_selected: int = 1,
        argument: str = "gradient_aggregator",
    ) -> None:
        check_choice(argument, name, AGGREGATORS)
        self.name = name
        self._said = f"`{argument}={name!r}`"
        self.num_tasks = num_tasks
        self.seed = seed
        options = {
            "cagrad": {"c": cagrad_c},
            "fairgrad": {"alpha": fairgrad_alpha},
            "krum": {"n_byzantine": krum_byzantine, "n_selected": krum_selected},
        }
        self._options: dict[str, Any] = options.get(name, {})
        self._fewest = max(krum_byzantine + 3, krum_selected) if name == "krum" else 2
        # weights(s·G) = s^degree · weights(G); FairGrad solves G w = w^(-1/α).
        self._degree = -fairgrad_alpha / (1 + fairgrad_alpha) if name == "fairgrad" else 0.0
        if name == "krum" and num_tasks < self._fewest:
            raise ValueError(
                f"{self._said} needs `krum_byzantine` + 3 and at least `krum_selected` tasks, got "
                f"{num_tasks} tasks with `krum_byzantine={krum_byzantine}` and `krum_selected={krum_selected}`."
            )
        self._weightings: dict[str, nn.Module] = {}  # by the tasks present, as "1101"
        self._weighting("1" * num_tasks)  # what is not installed is missed here, not in the first step

    def __call__(self, gramian: Tensor, present: Tensor, step: int) -> Tensor:
        """Weights `[N]` with the dtype and on the device of the Gramian, without gradient; 0 at absent tasks.

        Args:
            gramian: `[N, N]` inner products of the tasks' gradients; what it holds for absent tasks, NaN included,
                does not matter.
            present: bool `[N]`.
            step: number of the optimizer step, for draws.

        Raises:
            ValueError: a shape does not fit N, or `present` is not bool.
            FloatingPointError: the weights are not finite.
        """
        tasks = self.num_tasks
        if gramian.shape != (tasks, tasks) or present.shape != (tasks,) or present.dtype != torch.bool:
            raise ValueError(
                f"`gramian` and `present` must have the shapes {(tasks, tasks)} and {(tasks,)}, the latter bool, got "
                f"{tuple(gramian.shape)} and {tuple(present.shape)} of {present.dtype}"
            )
        here = present.cpu()
        own = gramian.detach().cpu()[here][:, here]
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        weights = own.new_zeros(tasks)
        weights[here] = self._weights(own, "".join("01"[each] for each in here.tolist()), step)
        return weights.to(gramian)

    def _weights(self, gramian: Tensor, tasks: str, step: int) -> Tensor:
        if len(gramian) < self._fewest or not bool(gramian.diagonal().any()):
            return gramian.new_ones(len(gramian))
        scale = 1.0 if self.name == "pcd" else float(gramian.diagonal().mean())
        weights = self._call(self._weighting(tasks), gramian / scale, f"{self.seed}/{step}") * scale**self._degree
        if not bool(weights.isfinite().all()):
            raise FloatingPointError(
                f"{self._said} gives the weights {weights.tolist()} in step {step}: choose "
                "another one, or lower `learning_rate`."
            )
        return weights

    @staticmethod
    def _call(weighting: nn.Module, gramian: Tensor, seed: str) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed every accelerator too. A string seed goes through SHA-512.
            torch.default_generator.manual_seed(random.Random(seed).getrandbits(32))
            return weighting(gramian)

    def _weighting(self, tasks: str) -> nn.Module:
        if tasks not in self._weightings:
            try:
                from torchjd import aggregation

                self._weightings[tasks] = vars(aggregation)[AGGREGATORS[self.name]](**self._options)
            except ImportError as error:
                raise ImportError(
                    f"{self._said} needs packages that are not installed ({error}): "
                    "`pip install 'jscpt-peft[aggregators]'`, or leave it out for the weights of the paper."
                ) from error
        return self._weightings[tasks]

    def state_dict(self) -> dict[str, Tensor]:
        """What "gradvac" and "pcd" remember, `<tasks present>/<buffer>` -> tensor; empty for the others."""
        return {
            f"{tasks}/{name}": tensor.clone()
            for tasks, weighting in self._weightings.items()
            for name, tensor in weighting.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: the state is that of another aggregator or number of tasks.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            tasks, _, buffer = name.partition("/")
            parts.setdefault(tasks, {})[buffer] = tensor
        self._weightings = {}
        for tasks, buffers in parts.items():
            weighting = self._weighting(tasks)
            kind = next((each.dtype for each in buffers.values() if each.is_floating_point()), torch.float32)
            # TorchJD makes its buffers in the first call.
            self._call(weighting, torch.eye(tasks.count("1"), dtype=kind), "")
            own = {name: tensor.shape for name, tensor in weighting.state_dict().items()}
            if len(tasks) != self.num_tasks or own != {name: tensor.shape for name, tensor in buffers.items()}:
                raise ValueError(f"the state {sorted(state)} is not that of {self._said} with {self.num_tasks} tasks.")
            weighting.load_state_dict(buffers)


class GramianWeighting(Weighting):
    """The weights of an aggregator alone (PCGrad, IMTL-G, ...).

    Args:
        aggregator: gives them.
        weight_normalization: as for `TaskPromptScheduler`; "none" leaves the weights as they are published.
    """

    needs_gramian = True

    def __init__(self, aggregator: GradientAggregator, weight_normalization: str = "none") -> None:
        super().__init__()
        self.aggregator = aggregator
        self.weight_normalization = weight_normalization

    def forward(self, signals: StepSignals) -> Tensor:
        weights = self.aggregator(signals.gramian, signals.usable, signals.step)
        return normalized(weights, signals.usable, self.weight_normalization)

    def get_extra_state(self) -> dict[str, Tensor]:
        """What the aggregator remembers."""
        return self.aggregator.state_dict()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.aggregator.load_state_dict(state)
