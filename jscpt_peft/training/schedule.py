"""Δ, A and φ of one lower step (Eqs. 4-6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jscpt_peft.scheduling import (
    GradientAggregator,
    TaskPromptScheduler,
    affinity_from_gramian,
    causal_effect,
    gradient_cosine,
)

from .task_gradients import TaskMeans, shared_prompt_gradients


@dataclass(frozen=True)
class Schedule:
    """What a lower step knows of the tasks' relations; N tasks, in the precision of Ω.

    Attributes:
        effect: `[N]` Δ (Eq. 4), nan where a task is absent.
        affinity: `[N, N]` A (Eq. 5), row = source, column = target.
        cosine: `[N, N]` cosines of the tasks' gradients with respect to the shared prompts.
        weights: `[N]` φ (Eq. 6), differentiable in Ω; 0 for tasks that are absent or not finite.
        alpha, beta: `[N]` Ω as it was for these weights, detached.
        prompt_factor, task_factor: `[N]` the two factors of Eq. 6, detached; nan where the weight is 0 for the above.
    """

    effect: Tensor
    affinity: Tensor
    cosine: Tensor
    weights: Tensor
    alpha: Tensor
    beta: Tensor
    prompt_factor: Tensor
    task_factor: Tensor


def schedule(
    step: TaskMeans,
    scheduler: TaskPromptScheduler,
    num_shared_tokens: int,
    effect_kind: str = "literal",
    affinity_kind: str = "clipped",
    aggregator: GradientAggregator | None = None,
    number: int = 0,
) -> Schedule:
    """Causal effects, affinities and weights from the task losses and gradients of one step.

    Args:
        step: losses and gradients of every task.
        scheduler: Ω.
        num_shared_tokens: n_s, the shared tokens come first in each view.
        effect_kind: `kind` of `causal_effect`.
        affinity_kind: `kind` of `inter_task_affinity`.
        aggregator: what gives the task factor of Eq. 6 instead of the affinities; `None`: nothing does.
        number: the optimizer step's, for the aggregator's draws.
    """
    precision = scheduler.alpha.dtype
    effect = causal_effect(step.reference_losses, step.losses, effect_kind).to(precision)
    shared = shared_prompt_gradients(step.gradients, num_shared_tokens).to(precision)
    gramian = shared @ shared.T
    affinity = affinity_from_gramian(gramian, affinity_kind)
    given = None
    if aggregator is not None:
        exact = shared.double()  # rounded, the Gramian of dependent gradients has eigenvalues that are but noise
        given = aggregator(exact @ exact.T, step.usable, number)
    weights = scheduler(effect, affinity, step.usable, given)
    omega = [each.detach().clone() for each in (scheduler.alpha, scheduler.beta)]
    factors = [
        factor.detach().masked_fill(~step.usable, torch.nan)
        for factor in scheduler.factors(effect, affinity, step.usable, given)
    ]
    return Schedule(effect, affinity, gradient_cosine(gramian), weights, *omega, *factors)
