"""Joint scheduling of prompts and tasks: Eqs. 4 to 6 for one step."""

from __future__ import annotations

import torch
from torch import Tensor

from .affinity import affinity_from_gramian
from .effect import causal_effect
from .gramian import GradientAggregator
from .scheduler import TaskPromptScheduler
from .signals import StepSignals, Weighting


class JointScheduling(Weighting):
    """φ from the causal effects Δ (Eq. 4) and the inter-task affinities A (Eq. 5), by Eq. 6.

    Args:
        scheduler: Eq. 6 and Ω = {α, β}.
        effect: `kind` of `causal_effect`.
        affinity: `kind` of `inter_task_affinity`.
        aggregator: gives the task factor of Eq. 6 in the place of the affinities; `None`: nothing does.
    """

    needs_reference = needs_gramian = True

    def __init__(
        self,
        scheduler: TaskPromptScheduler,
        effect: str = "literal",
        affinity: str = "clipped",
        aggregator: GradientAggregator | None = None,
    ) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.effect = effect
        self.affinity = affinity
        self.aggregator = aggregator
        self._columns: dict[str, Tensor] = {}

    def forward(self, signals: StepSignals) -> Tensor:
        precision, usable = self.scheduler.alpha.dtype, signals.usable
        effect = causal_effect(signals.reference_losses, signals.losses, self.effect).to(precision)
        affinity = affinity_from_gramian(signals.gramian.to(precision), self.affinity)
        given = None if self.aggregator is None else self.aggregator(signals.gramian, usable, signals.step)
        factors = self.scheduler.factors(effect, affinity, usable, given)
        unusable, unknown = ~usable, ~torch.outer(usable, usable)  # a gradient set to zero is related to no other
        self._columns = {
            "causal_effect": effect,
            "prompt_factor": factors[0].detach().masked_fill(unusable, torch.nan),
            "task_factor": factors[1].detach().masked_fill(unusable, torch.nan),
            "affinity": affinity.masked_fill(unknown, torch.nan),
        }
        return self.scheduler.combine(*factors, usable)

    def log(self) -> dict[str, Tensor]:
        """Δ, A and the factors of Eq. 6; nan where a task was not usable."""
        return self._columns

    def learned(self) -> dict[str, Tensor]:
        """α and β."""
        return {name: getattr(self.scheduler, name).detach().clone() for name in ("alpha", "beta")}

    def depends_on_omega(self, num_tasks: int) -> bool:
        """As the factors do; normalised to its sum, the weight of a single task is 1 whatever Ω is.

        Its gradient would be rounding errors, which Adam makes whole steps of.
        """
        by_affinity = self.scheduler.task_scheduling and self.aggregator is None
        constant = self.scheduler.weight_normalization == "sum" and num_tasks < 2
        return (self.scheduler.prompt_scheduling or by_affinity) and not constant

    def get_extra_state(self) -> dict[str, Tensor]:
        """What the aggregator remembers."""
        return {} if self.aggregator is None else self.aggregator.state_dict()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        if self.aggregator is not None:
            self.aggregator.load_state_dict(state)
