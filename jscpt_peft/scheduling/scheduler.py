"""Eq. 6: what every task counts at this step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrize import register_parametrization

from jscpt_peft.choices import check_choice

AFFINITY_DIRECTIONS = ("incoming", "outgoing")
WEIGHT_NORMALIZATIONS = ("sum", "none")
PARAMETERIZATIONS = ("unconstrained", "softplus")


class TaskPromptScheduler(nn.Module):
    """Scheduling weights φ of the tasks (paper, Eq. 6): `φ_i = σ(α_i Δ_i) · σ(β_i a_i)`.

    Δ is the causal effect (Eq. 4), `a_i` the mean affinity (Eq. 5) between task i and the other tasks present. Its
    parameters, Ω = {α, β}, start at 1 and are learned by the upper level (Eqs. 8-11); Δ and A count as constants.

    Args:
        num_tasks: N.
        affinity_direction: "incoming": `a_i` is the mean over sources j of A[j, i], as Eq. 6's index says;
            "outgoing": the mean over targets j of A[i, j].
        weight_normalization: "sum" scales the weights to sum to the number of tasks present, so that a learning rate
            means the same with and without scheduling; "none" leaves Eq. 6 as printed. Weights that a `task_factor`
            makes negative count by their absolute values, so that no weight exceeds that number and none changes its
            sign; weights that are all zero stay so.
        parameterization: "unconstrained", or "softplus", which keeps α and β positive.
        prompt_scheduling: without it the factor σ(α_i Δ_i) is 1.
        task_scheduling: without it the factor σ(β_i a_i) is 1.

    Raises:
        ValueError: an option is none of its choices, or `num_tasks` is below 1.

    Attributes:
        alpha, beta: `[N]`, the values that enter Eq. 6. Give `parameters()` to an optimizer or to autograd: under
            "softplus" these two are functions of them.

    Example:
        >>> scheduler = TaskPromptScheduler(2)
        >>> scheduler(torch.tensor([0.9, 0.6]), torch.zeros(2, 2))
        tensor([1.0481, 0.9519], grad_fn=<WhereBackward0>)
    """

    def __init__(
        self,
        num_tasks: int,
        affinity_direction: str = "incoming",
        weight_normalization: str = "sum",
        parameterization: str = "unconstrained",
        prompt_scheduling: bool = True,
        task_scheduling: bool = True,
    ) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"`num_tasks` must be at least 1, got {num_tasks}")
        check_choice("affinity_direction", affinity_direction, AFFINITY_DIRECTIONS)
        check_choice("weight_normalization", weight_normalization, WEIGHT_NORMALIZATIONS)
        check_choice("parameterization", parameterization, PARAMETERIZATIONS)
        self.num_tasks = num_tasks
        self.affinity_direction = affinity_direction
        self.weight_normalization = weight_normalization
        self.prompt_scheduling = prompt_scheduling
        self.task_scheduling = task_scheduling
        self.alpha = nn.Parameter(torch.ones(num_tasks))
        self.beta = nn.Parameter(torch.ones(num_tasks))
        if parameterization == "softplus":
            register_parametrization(self, "alpha", Softplus())
            register_parametrization(self, "beta", Softplus())

    def forward(
        self, effect: Tensor, affinity: Tensor, present: Tensor | None = None, task_factor: Tensor | None = None
    ) -> Tensor:
        """Weights `[N]`, differentiable in `parameters()`; 0 at absent tasks.

        Args:
            effect: `[N]`, Δ of Eq. 4.
            affinity: `[N, N]`, A of Eq. 5, A[i, j] of source i on target j; the diagonal is not read.
            present: bool `[N]`, the tasks in this step (default: all). What `effect` and `affinity` hold for absent
                tasks, NaN included, does not matter.
            task_factor: `[N]`, what stands in the place of σ(β_i a_i), such as the weights of a `GradientAggregator`;
                the result does not depend on β then.

        Raises:
            ValueError: a shape does not fit `num_tasks`, `present` is not bool, or there is a `task_factor` although
                `task_scheduling` is off.
        """
        present = self._check(effect, affinity, present, task_factor)
        return self.combine(*self.factors(effect, affinity, present, task_factor), present)

    def combine(self, prompt_factor: Tensor, task_factor: Tensor, present: Tensor) -> Tensor:
        """The product of the two factors of `factors` `[N]`, normalised; 0 at absent tasks."""
        return normalized(prompt_factor * task_factor, present, self.weight_normalization)

    def factors(
        self, effect: Tensor, affinity: Tensor, present: Tensor, task_factor: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """σ(α_i Δ_i) `[N]` and σ(β_i a_i) `[N]` or `task_factor`, ones without that scheduling; arguments as above."""
        # An absent task's numbers are replaced before any arithmetic: 0 * NaN would reach the gradients.
        effect = effect.detach().masked_fill(~present, 0)
        prompt_factor = torch.sigmoid(self.alpha * effect) if self.prompt_scheduling else torch.ones_like(effect)
        if task_factor is not None:
            task_factor = task_factor.detach().to(prompt_factor.dtype)
        elif self.task_scheduling:
            task_factor = self._task_factor(affinity.detach(), present)
        else:
            task_factor = torch.ones_like(effect)
        return prompt_factor, task_factor

    def _task_factor(self, affinity: Tensor, present: Tensor) -> Tensor:
        """σ(β_i a_i) `[N]`; 1 where there is no other task to have an affinity with."""
        itself = torch.eye(self.num_tasks, dtype=torch.bool, device=affinity.device)
        pairs = torch.outer(present, present) & ~itself
        axis = 0 if self.affinity_direction == "incoming" else 1
        others = pairs.sum(dim=axis)
        mean = affinity.masked_fill(~pairs, 0).sum(dim=axis) / others.clamp(min=1)
        return torch.where(others > 0, torch.sigmoid(self.beta * mean), 1)

    def _check(self, effect: Tensor, affinity: Tensor, present: Tensor | None, task_factor: Tensor | None) -> Tensor:
        tasks = self.num_tasks
        if present is None:
            present = torch.ones(tasks, dtype=torch.bool, device=effect.device)
        expected = {
            "effect": (effect, (tasks,)),
            "affinity": (affinity, (tasks, tasks)),
            "present": (present, (tasks,)),
        }
        if task_factor is not None:
            if not self.task_scheduling:
                raise ValueError("`task_factor` takes the place of the factor that `task_scheduling=False` sets to 1")
            expected["task_factor"] = (task_factor, (tasks,))
        for name, (tensor, shape) in expected.items():
            if tensor.shape != shape:
                raise ValueError(f"`{name}` must have the shape {shape} for {tasks} tasks, got {tuple(tensor.shape)}")
        if present.dtype != torch.bool:
            raise ValueError(f"`present` must be a bool tensor, got {present.dtype}")
        return present

    def extra_repr(self) -> str:
        return (
            f"num_tasks={self.num_tasks}, affinity_direction={self.affinity_direction!r}, "
            f"weight_normalization={self.weight_normalization!r}, prompt_scheduling={self.prompt_scheduling}, "
            f"task_scheduling={self.task_scheduling}"
        )


def normalized(weights: Tensor, present: Tensor, kind: str) -> Tensor:
    """Weights `[N]` normalised as `TaskPromptScheduler` tells of `weight_normalization`; 0 at absent tasks."""
    if kind == "sum":
        total = weights.masked_fill(~present, 0).abs().sum().clamp(min=torch.finfo(weights.dtype).tiny)
        weights = weights * (present.sum() / total)
    return torch.where(present, weights, 0)


class Softplus(nn.Module):
    """`softplus`, with the inverse by which a parametrized tensor takes its first value."""

    def forward(self, raw: Tensor) -> Tensor:
        return softplus(raw)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value + torch.log(-torch.expm1(-value))
