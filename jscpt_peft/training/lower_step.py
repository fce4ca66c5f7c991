"""Every task's loss and gradient from one micro-batch, as the trainer wants them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from peft import PeftModel
from transformers.utils import logging

from jscpt_peft.model.backbones.attention import compiled_blocks
from jscpt_peft.model.backbones.double_backward import upper_level_precision
from jscpt_peft.model.cache import CacheKey, results_held
from jscpt_peft.model.heads import TaskParameters

from .arguments import JSCPTTrainingArguments
from .hessian import KeptGraph, kept_graph
from .own_loss import OwnLoss
from .step_graphs import StepGraphs
from .task_gradients import Batch, task_gradients
from .task_sums import TaskSums

logger = logging.get_logger(__name__)


class LowerStep:
    """Losses and gradients of micro-batches of one model, whose base model nobody changes between two looks at it.

    Args:
        model: the JSCPT model.
        args: of the training.
        reference: whether the losses on the view that Eq. 4 compares x̄ with are wanted.
        autocast: gives the context of a forward pass.
        own_loss: takes the place of Eq. 3.
    """

    def __init__(
        self,
        model: PeftModel,
        args: JSCPTTrainingArguments,
        reference: bool,
        autocast: Callable[[], AbstractContextManager],
        own_loss: OwnLoss | None,
    ) -> None:
        self.model = model
        self.args = args
        self.reference = args.reference if reference else None
        self.autocast = autocast
        self.own_loss = own_loss
        self.graphs = None
        if args.cuda_graphs == "auto":
            reason = self._why_not()
            if reason is None:
                self.graphs = StepGraphs(lambda batch: self._eager(batch)[0])
            else:
                logger.warning(f"`cuda_graphs='auto'` records no steps: {reason}.")
        self._base: CacheKey | None = None
        self._looked = False

    def look(self) -> None:
        """The next step looks at the base model's parameters, lest what is kept of them is no longer true."""
        self._looked = False
        if self.graphs is not None:
            before, self._base = self._base, CacheKey([self.model.get_base_model()])
            if before is not None and before != self._base:
                self.graphs.forget()

    def __call__(self, batch: Batch, keep: bool) -> tuple[TaskSums, TaskParameters, KeptGraph | None]:
        """Sums over the images of each task, and the task parameters that they belong to.

        With `keep` also the graph of the gradients, for Hessian-vector products.
        """
        with results_held() if self._looked else nullcontext():
            if keep:
                with upper_level_precision(self.args.hypergradient_dtype):
                    kept = kept_graph(self.model, batch, self.reference, self.own_loss)
                result = kept.sums.detach(), kept.task_parameters, kept
            elif self.graphs is not None and self._looked:
                result = self.graphs(batch), self.model.task_parameters(), None
            else:
                result = *self._eager(batch), None
        self._looked = True
        return result

    def _why_not(self) -> str | None:
        """What keeps steps from being recorded."""
        head, base = self.model.task_adapter.head, self.model.get_base_model()
        if self.args.device.type != "cuda":
            return f"there is no CUDA device here, but {str(self.args.device)!r}"
        if self.own_loss is not None or (head is not None and (head.has_penalty or head.observes)):
            return "a loss of one's own, or the method's head, may look at values"
        if getattr(base, "is_gradient_checkpointing", False) or self.args.activation_checkpointing:
            return "checkpointed blocks look at the random state"
        return None

    def _eager(self, batch: Batch) -> tuple[TaskSums, TaskParameters]:
        backend = self.args.compile_blocks
        with nullcontext() if backend is None else compiled_blocks(backend):
            return task_gradients(
                self.model, batch, self.reference, forward_context=self.autocast(), own_loss=self.own_loss
            )
