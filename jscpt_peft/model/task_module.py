"""Parameters that tasks share beside parameters of each task's own, which can grow by a task or train one alone."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from .start import Start


class TaskModule(nn.Module):
    """A part of an adapter: parameters that all tasks share, and stacks `[N, ...]` of parameters of each task's own.

    Subclasses make their parameters in `__init__` with `share` and `own`, and read them through `tensors()` or, where
    the single-task form of a method is to work as well, through `by_task()`.

    A gradient of zero does not keep a task's slice of a stack as it is: weight decay and momentum move it all the
    same. A task that is trained alone therefore has parameters of its own, `[1, ...]`, that lie over its slices of the
    frozen stacks. In the `state_dict` there are only the stacks, with these slices in their places, so that adapter
    files do not tell how they were trained; such a stack is a copy: write into it by `load_state_dict` alone.

    Args:
        start: sizes and random numbers that the parameters begin with.

    Attributes:
        num_tasks: N.
        single_task: whether what tasks share is a stack as well, so that every task learns as if it were alone.
        stacked: names of the stacks.
        trained: position of the task that is trained alone, or `None`.
        rows: that task's parameters, by the names of their stacks; empty otherwise.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.num_tasks = start.num_tasks
        self.single_task = start.config.single_task
        self.stacked: tuple[str, ...] = ()
        self.trained: int | None = None
        self.rows = nn.ParameterDict()
        self.register_state_dict_post_hook(_fold)
        self.register_load_state_dict_pre_hook(_unfold)

    def share(self, name: str, value: Tensor, learned: bool = True) -> None:
        """Adds a parameter that all tasks share; in the single-task form a copy per task, all with this start.

        As a buffer unless `learned`.
        """
        if self.single_task:
            self.own(name, value.expand(self.num_tasks, *value.shape).clone(), learned)
        else:
            self._hold(name, value, learned)

    def own(self, name: str, value: Tensor, learned: bool = True) -> None:
        """Adds a stack `[N, ...]`, a slice per task; as a buffer unless `learned`."""
        self._hold(name, value, learned)
        self.stacked += (name,)

    def _hold(self, name: str, value: Tensor, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, the stacks with the slices that are trained alone in their places."""
        held = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        return {
            name: _with_row(tensor, self.rows[name], self.trained) if name in self.rows else tensor
            for name, tensor in held.items()
        }

    def by_task(self) -> dict[str, Tensor]:
        """`tensors()` with the tasks in the first dimension: `[N, ...]`, or `[1, ...]` of what they share.

        The single-task form of a method follows where nothing else is read.
        """
        return {name: each if name in self.stacked else each[None] for name, each in self.tensors().items()}

    def shared(self) -> list[nn.Parameter]:
        """The parameters that several tasks share."""
        own = {*self.stacked, *(f"rows.{name}" for name in self.rows)}
        return [parameter for name, parameter in self.named_parameters() if name not in own]

    def centre(self, name: str, weights: Tensor) -> Tensor:
        """What a prior holds the slices of a stack `[N, ...]` near: their mean, weighted by `[N]` weights, `[...]`."""
        return torch.tensordot(
            weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny), self.tensors()[name], 1
        )

    @property
    def has_own_parameters(self) -> bool:
        """Whether a task has parameters here that no other task has."""
        return any(name in self._parameters for name in self.stacked)

    def append(self, other: Self, copied_from: int | None = None) -> None:
        """Appends the slices of a module that was made like this one, for further tasks.

        Args:
            other: the further tasks' module.
            copied_from: take the slices of this task instead, where they are parameters.
        """
        new, held = other.tensors(), self.tensors()
        for name in self.stacked:
            parameter = self._parameters.get(name)
            stack = self.get_buffer(name) if parameter is None else parameter
            copied = copied_from is not None and parameter is not None
            slices = held[name][copied_from, None] if copied else new[name]
            grown = torch.cat([stack.detach(), slices.detach().to(stack)])
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
            trained = set(self.rows.values())
            for parameter in self.parameters():
                if parameter not in trained:
                    parameter.requires_grad_(False)
                    parameter.grad = None


def _with_row(stack: Tensor, row: Tensor, task: int) -> Tensor:
    return torch.cat([stack[:task], row, stack[task + 1 :]])


def _fold(module: TaskModule, state_dict: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in module.rows:
        row = state_dict.pop(f"{prefix}rows.{name}")
        state_dict[f"{prefix}{name}"] = _with_row(state_dict[f"{prefix}{name}"], row, module.trained)


def _unfold(module: TaskModule, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in module.rows:
        if f"{prefix}{name}" in state_dict:
            stack = state_dict[f"{prefix}{name}"]
            fits = len(stack) == module.num_tasks  # else torch tells that the stack itself has another size
            row = stack[module.trained, None] if fits else module.rows[name]
            state_dict[f"{prefix}rows.{name}"] = row.detach().clone()
