"""Steps in which a task's loss or gradient is not finite: counted, and gone back from where they do not end."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from jscpt_peft.model import JSCPTModel
from jscpt_peft.model.adapter_file import LARGEST, unsound
from jscpt_peft.model.causes import cause_of_nan


class Snapshot:
    """A copy in memory of parameters and of whatever else has a `state_dict`, to go back to.

    Args:
        parameters: tensors that are copied as they are now.
        others: objects with `state_dict` and `load_state_dict`.
    """

    def __init__(self, parameters: Sequence[Tensor], others: Sequence[Any]) -> None:
        self._parameters = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._others = [(other, copy.deepcopy(other.state_dict())) for other in others]

    def restore(self) -> None:
        """Puts everything back as it was."""
        self.restore_parameters()
        for other, state in self._others:
            other.load_state_dict(copy.deepcopy(state))

    @torch.no_grad()
    def restore_parameters(self, unless: Tensor | None = None) -> None:
        """Puts the parameters back as they were, `unless` a bool `[]` says no, which stays on its device."""
        for parameter, value in self._parameters:
            parameter.copy_(value if unless is None else torch.where(unless, parameter, value))

    def restore_moments(self, optimizer: Any) -> None:
        """Puts back what one of the others, an optimizer, holds of every parameter; learning rates stay."""
        state = next(state for other, state in self._others if other is optimizer)
        optimizer.load_state_dict({**copy.deepcopy(state), "param_groups": optimizer.state_dict()["param_groups"]})


def problem_of(parameters: Iterable[Tensor]) -> str | None:
    """What is wrong with parameters, if anything: such a state would not load again."""
    problems = {problem for each in parameters if (problem := unsound(each))}
    if not problems:
        return None
    return "parameters are not finite" if "is not finite" in problems else f"parameters exceed {LARGEST:.0e}"


def remedy_of(model: JSCPTModel, from_the_start: bool, tasks: Sequence[str] | None = None) -> str:
    """What to do about steps that are not finite; before a first good one nothing hangs on the learning rate."""
    images = "the images" if tasks is None else f"the images of {list(tasks)}"
    if from_the_start:
        return f"So it was from the first step on: {cause_of_nan(model)} ({images})."
    return f"Lower `learning_rate`, or look at {images}."
