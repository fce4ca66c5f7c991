"""What a method does with an image's features before they meet the class features."""

from __future__ import annotations

from torch import Tensor

from ..task_module import TaskModule

TaskParameters = dict[str, Tensor]
"""Parameters as each task sees them: name -> `[N, ...]`; task i's loss depends on the slices i alone."""


class FeatureHead(TaskModule):
    """x -> x̄ under each image's task; the base of all heads. Name it in `FEATURE_HEADS`.

    `select` and `reference` are functions of `task_parameters()`, which they are given, so that one backward gives
    every task's gradient.
    """

    def task_parameters(self) -> TaskParameters:
        """Every parameter as each task sees it, differentiable: name -> `[N, ...]`."""
        return {name: each.expand(self.num_tasks, *each.shape[1:]) for name, each in self.by_task().items()}

    def select(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
        """x̄ `[B, D]` of image features x `[B, D]`.

        Args:
            x: image features, not normalised.
            task_ids: `[B]`.
            parameters: `task_parameters()`; others may stand beside them.
        """
        raise NotImplementedError

    def reference(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters, kind: str) -> Tensor:  # noqa: ARG002
        """The view `[B, D]` that the causal effect compares x̄ with (Eq. 4): x itself, unless a head knows a better.

        Args:
            x, task_ids, parameters: as for `select`.
            kind: `"original"` or `"complement"`.
        """
        return x
