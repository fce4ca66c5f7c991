"""Steps of the parameters that are each task's own: weighed by φ, and held near the other tasks'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback

from jscpt_peft.model.heads import TaskParameters
from jscpt_peft.model.task_module import TaskModule

from .arguments import JSCPTTrainingArguments
from .task_gradients import scheduled_gradient
from .task_sums import like


class OwnSteps(TrainerCallback):
    """What follows an optimizer step, for each stack `[N, ...]` whose slice θ_i belongs to task i alone:

        θ_i ← θ_i + φ_i s_i - min(η₁ λ, 1) (θ_i - c)

    s_i is the step that the optimizer makes of ∇L_i, without φ_i. An adaptive optimizer makes the same step of
    φ_i ∇L_i as of ∇L_i, so that a weight in the gradient moves nothing; one that scales the step, momentum and weight
    decay included, does. With plain SGD both are the same. The pull is decoupled from the gradient, as AdamW's
    weight decay; c is the part's `centre`: the mean of the tasks weighted by φ, for class residuals zero.

    Args:
        args: `task_prior` is λ; without `weigh_own_steps`, s_i is the optimizer's step of φ_i ∇L_i and stays as it is.

    Attributes:
        weights: `[N]` φ of the step under way.
    """

    def __init__(self, args: JSCPTTrainingArguments) -> None:
        self.args = args
        self.weights: Tensor | None = None
        self._before: list[Tensor] = []

    def give_gradients(
        self,
        model: PeftModel,
        parameters: Sequence[Tensor],
        task_parameters: TaskParameters,
        task_gradients: TaskParameters,
        weights: Tensor,
    ) -> Tensor:
        """Gives every trained parameter its gradient (Eq. 9), notes `weights`, and returns the gradient's norm.

        Args:
            model: the JSCPT model.
            parameters: its trained parameters.
            task_parameters: its task parameters, with their graph.
            task_gradients: task parameter -> `[N, ...]`.
            weights: `[N]` φ without its graph.
        """
        self.weights = weights
        gradients = scheduled_gradient(task_parameters, parameters, task_gradients, weights)
        given = list(zip(parameters, gradients, strict=True))
        if self.args.weigh_own_steps:
            own, ones = [getattr(part, name) for part, name in own_stacks(model)], torch.ones_like(weights)
            unweighed = scheduled_gradient(model.task_parameters(), own, task_gradients, ones)
            given += zip(own, unweighed, strict=True)
        for parameter, gradient in given:
            parameter.grad = gradient
        return torch.nn.utils.get_total_norm(gradients)

    def on_pre_optimizer_step(self, *_: Any, model: PeftModel, **__: Any) -> None:
        if self.args.weigh_own_steps:
            self._before = [getattr(part, name).detach().clone() for part, name in own_stacks(model)]

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, model: PeftModel, optimizer: torch.optim.Optimizer, **__: Any) -> None:
        pull = min(self.args.task_prior * optimizer.param_groups[0]["lr"], 1.0)
        for part, name in own_stacks(model) if self.args.weigh_own_steps or pull else ():
            stack, weights = getattr(part, name), self.weights.to(getattr(part, name))
            if self.args.weigh_own_steps:
                before = self._before.pop(0)
                stack.copy_(before + like(weights, stack) * (stack - before))
            if pull:
                stack.lerp_(part.centre(name, weights).expand_as(stack), pull)


def check_own_steps(args: JSCPTTrainingArguments, model: PeftModel) -> None:
    """Raises a `ValueError` where steps of tasks' own parameters are to be changed, and there are none."""
    for name in ("weigh_own_steps", "task_prior"):
        if getattr(args, name) and not own_stacks(model):
            value = getattr(args, name)
            raise ValueError(
                f"`{name}` is {value}, but the tasks of this adapter train no parameters of their own: leave it out."
            )


def own_stacks(model: PeftModel) -> list[tuple[TaskModule, str]]:
    """The parts of an adapter, and the names of their stacks that are trained."""
    return [
        (part, name)
        for part in model.task_adapter.parts()
        for name in part.stacked
        if isinstance(getattr(part, name), nn.Parameter) and getattr(part, name).requires_grad
    ]
