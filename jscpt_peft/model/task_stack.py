"""Parameters of each task's own, stacked `[N, ...]`: they can grow by a task, and one task can be trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn


class TaskStack(nn.Module):
    """A module that holds parameters of N tasks in stacks `[N, ...]`, beside others that the tasks share.

    A gradient of zero does not keep a task's slice of a stack as it is: weight decay and momentum move it all the
    same. A task that is trained alone therefore has parameters of its own, `[1, ...]`, that lie over its slices of the
    frozen stacks. In the `state_dict` there are only the stacks, with these slices in their places, so that adapter
    files do not tell how they were trained; such a stack is a copy: write into it by `load_state_dict` alone.

    Args:
        num_tasks: N.
        stacked: names of the parameters and buffers that are stacks.

    Attributes:
        trained: position of the task that is trained alone, or `None`.
        rows: that task's parameters, by the names of their stacks; empty otherwise.
    """

    def __init__(self, num_tasks: int, stacked: Sequence[str]) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.stacked = tuple(stacked)
        self.trained: int | None = None
        self.rows = nn.ParameterDict()
        self.register_state_dict_post_hook(_fold)
        self.register_load_state_dict_pre_hook(_unfold)

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, the stacks with the slices that are trained alone in their places."""
        held = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        return {
            name: _with_row(tensor, self.rows[name], self.trained) if name in self.rows else tensor
            for name, tensor in held.items()
        }

    @property
    def has_own_parameters(self) -> bool:
        """Whether a task has parameters here that no other task has."""
        return any(name in self._parameters for name in self.stacked)

    def append(self, other: Self) -> None:
        """Appends the slices of a module that was made like this one, for further tasks."""
        new = other.tensors()
        for name in self.stacked:
            parameter = self._parameters.get(name)
            stack = self.get_buffer(name) if parameter is None else parameter
            grown = torch.cat([stack.detach(), new[name].detach().to(stack)])
            if parameter is None:
                self.register_buffer(name, grown)
            else:
                self.register_parameter(name, nn.Parameter(grown, requires_grad=parameter.requires_grad))
        self.num_tasks += other.num_tasks

    def train_only(self, task: int | None) -> None:
        """Gradients go to the parameters of one task alone, at this position; `None`: to all parameters."""
        with torch.no_grad():
            for name, row in self.rows.items():
                self.get_parameter(name)[self.trained].copy_(row[0])
        self.rows.clear()
        self.requires_grad_(True)
        self.trained = task
        if task is not None:
            for name in self.stacked:
                if name in self._parameters:
                    self.rows[name] = nn.Parameter(self.get_parameter(name)[task, None].detach().clone())
        self.freeze_others()

    def freeze_others(self) -> None:
        """No gradients for what is not to be trained; the optimizers of an earlier training find none either."""
        if self.trained is not None:
            for parameter in self.parameters(recurse=False):
                parameter.requires_grad_(False)
                parameter.grad = None


def _with_row(stack: Tensor, row: Tensor, task: int) -> Tensor:
    return torch.cat([stack[:task], row, stack[task + 1 :]])


def _fold(module: TaskStack, state_dict: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in module.rows:
        row = state_dict.pop(f"{prefix}rows.{name}")
        state_dict[f"{prefix}{name}"] = _with_row(state_dict[f"{prefix}{name}"], row, module.trained)


def _unfold(module: TaskStack, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in module.rows:
        if f"{prefix}{name}" in state_dict:
            stack = state_dict[f"{prefix}{name}"]
            fits = len(stack) == module.num_tasks  # else torch tells that the stack itself has another size
            row = stack[module.trained, None] if fits else module.rows[name]
            state_dict[f"{prefix}rows.{name}"] = row.detach().clone()
