"""Steps in which a task's loss or gradient is not finite: counted, and gone back from where they do not end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """A copy in memory of parameters and of whatever else has a `state_dict`, to go back to.

    Args:
        parameters: tensors that are copied as they are now.
        others: objects with `state_dict` and `load_state_dict`.
    """

    def __init__(self, parameters: Sequence[Tensor], others: Sequence[Any]) -> None:
        self._parameters = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._others = [(other, copy.deepcopy(other.state_dict())) for other in others]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back as it was."""
        for parameter, value in self._parameters:
            parameter.copy_(value)
        for other, state in self._others:
            other.load_state_dict(copy.deepcopy(state))
