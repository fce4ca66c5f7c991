"""Δ, A and φ of one lower step (Eqs. 4-6)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from jscpt_peft.scheduling import TaskPromptScheduler, affinity_from_gramian, causal_effect, gradient_cosine

from .task_gradients import TaskMeans, shared_prompt_gradients


@dataclass(frozen=True)
class Schedule:
    """What a lower step knows of the tasks' relations; N tasks, float32.

    Attributes:
        effect: `[N]` Δ (Eq. 4), nan where a task is absent.
        affinity: `[N, N]` A (Eq. 5), row = source, column = target.
        cosine: `[N, N]` cosines of the tasks' gradients with respect to the shared prompts.
        weights: `[N]` φ (Eq. 6), differentiable in Ω; 0 for tasks that are absent or not finite.
    """

    effect: Tensor
    affinity: Tensor
    cosine: Tensor
    weights: Tensor


def schedule(
    step: TaskMeans,
    scheduler: TaskPromptScheduler,
    num_shared_tokens: int,
    effect_kind: str = "literal",
    affinity_kind: str = "clipped",
) -> Schedule:
    """Causal effects, affinities and weights from the task losses and gradients of one step.

    Args:
        step: losses and gradients of every task.
        scheduler: Ω.
        num_shared_tokens: n_s, the shared tokens come first in each view.
        effect_kind: `kind` of `causal_effect`.
        affinity_kind: `kind` of `inter_task_affinity`.
    """
    effect = causal_effect(step.reference_losses, step.losses, effect_kind).float()
    shared = shared_prompt_gradients(step.gradients, num_shared_tokens).float()
    gramian = shared @ shared.T
    affinity = affinity_from_gramian(gramian, affinity_kind)
    return Schedule(effect, affinity, gradient_cosine(gramian), scheduler(effect, affinity, step.usable))
