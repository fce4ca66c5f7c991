"""Every task's loss and gradient from one micro-batch, as the trainer wants them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from peft import PeftModel

from jscpt_peft.model.cache import results_held
from jscpt_peft.model.heads import TaskParameters

from .hessian import KeptGraph, kept_graph
from .own_loss import OwnLoss
from .task_gradients import Batch, TaskSums, task_gradients


class LowerStep:
    """Losses and gradients of micro-batches of one model, whose base model nobody changes between two looks at it.

    Args:
        model: the JSCPT model.
        autocast: gives the context of a forward pass.
        reference: the view that Eq. 4 compares x̄ with, or `None`.
        own_loss: takes the place of Eq. 3.
    """

    def __init__(
        self,
        model: PeftModel,
        autocast: Callable[[], AbstractContextManager],
        reference: str | None,
        own_loss: OwnLoss | None,
    ) -> None:
        self.model = model
        self.autocast = autocast
        self.reference = reference
        self.own_loss = own_loss
        self._looked = False

    def look(self) -> None:
        """The next step looks at the base model's parameters, lest what is kept of them is no longer true."""
        self._looked = False

    def __call__(self, batch: Batch, keep: bool) -> tuple[TaskSums, TaskParameters, KeptGraph | None]:
        """Sums over the images of each task, the task parameters that they belong to, and the graph of the gradients.

        Args:
            batch: the images.
            keep: whether the graph of the gradients is wanted, for Hessian-vector products.
        """
        with results_held() if self._looked else nullcontext():
            if keep:
                kept = kept_graph(self.model, batch, self.reference, self.own_loss)
                result = kept.sums.detach(), kept.task_parameters, kept
            else:
                sums, task_parameters = task_gradients(
                    self.model, batch, self.reference, forward_context=self.autocast(), own_loss=self.own_loss
                )
                result = sums, task_parameters, None
        self._looked = True
        return result
