"""What a method does with an image's features before they meet the class features."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from ..task_module import TaskModule

TaskParameters = dict[str, Tensor]
"""Parameters as each task sees them: name -> `[N, ...]`; task i's loss depends on the slices i alone."""

LossSums = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x̄ of some images of a batch, their positions in it `[b]`) -> each task's summed losses `[N]` and counts `[N]`."""


class FeatureHead(TaskModule):
    """x -> x̄ under each image's task; the base of all heads. Name it in `FEATURE_HEADS`.

    `select`, `reference` and `penalty` are functions of `task_parameters()`, which they are given, so that one
    backward gives every task's gradient.

    Attributes:
        has_penalty: whether `penalty` is to enter the tasks' losses.
        observes: whether `observe` is to be told of training images.
    """

    has_penalty = False
    observes = False

    def task_parameters(self) -> TaskParameters:
        """Every parameter as each task sees it, differentiable: name -> `[N, ...]`."""
        return {name: each.expand(self.num_tasks, *each.shape[1:]) for name, each in self.by_task().items()}

    def select(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters) -> Tensor:
        """x̄ `[B, D]` of image features x `[B, D]`; or `[B, K, D]`, K views whose probabilities are averaged.

        Args:
            x: image features, not normalised.
            task_ids: `[B]`.
            parameters: `task_parameters()`; others may stand beside them.
        """
        raise NotImplementedError

    # Subclasses use all: not every argument is used here.
    def reference(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters, kind: str) -> Tensor:  # noqa: ARG002
        """The view `[B, D]` that the causal effect compares x̄ with (Eq. 4): x itself, unless a head knows a better.

        Args:
            x, task_ids, parameters: as for `select`.
            kind: `"original"` or `"complement"`.
        """
        return x

    def penalty(self, x: Tensor, task_ids: Tensor, parameters: TaskParameters, loss_sums: LossSums) -> Tensor:
        """What is added to each task's mean loss in training, `[N]`, differentiable twice.

        Task i's penalty depends on its own images and on the slices i of the parameters alone; that of a task without
        an image counts for nothing.

        Args:
            x, task_ids, parameters: as for `select`.
            loss_sums: the losses that images of the batch have with other x̄.
        """
        raise NotImplementedError

    def observe(self, x: Tensor, task_ids: Tensor) -> None:
        """Told, after the gradients of each training step, of the first image of every task in it.

        All processes are told the same, in steps of any number of batches.

        Args:
            x: `[b, D]` image features of this step's parameters.
            task_ids: `[b]`.
        """
        raise NotImplementedError


def one_vector(selected: Tensor) -> Tensor:
    """x̄ `[B, D]` of what `select` gives, where a single vector is asked for: of several views the mean direction.

    Its cosines order the classes as the geometric mean of the views' probabilities does.
    """
    return selected if selected.dim() == 2 else F.normalize(selected, dim=-1).mean(1)
