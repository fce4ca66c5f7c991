"""A lower step recorded once and replayed: one launch in the place of thousands (CUDA graphs).

What a graph reads and writes has fixed addresses. Batches are copied into those that were recorded, results out of
them; parameters are updated in place anyway. A batch of another shape, or whose tasks are not in equal blocks, is
computed as ever.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers.utils import logging

from .task_gradients import Batch
from .task_sums import TaskSums

logger = logging.get_logger(__name__)

Step = Callable[[Batch], TaskSums]
Recorder = Callable[[Step, Batch], Callable[[], TaskSums]]

WARM_UP = 3  # steps in which kernels are chosen and memory is taken that a recording may not ask for


def record_cuda_graph(step: Step, batch: Batch) -> Callable[[], TaskSums]:
    """Records a step on tensors that stay where they are; what it gives computes it anew, into the same results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sums = step(batch)

    def replay() -> TaskSums:
        graph.replay()
        return sums

    return replay


class StepGraphs:
    """A step that is replayed for batches of the shape that it has seen most recently `WARM_UP` times.

    Args:
        step: of a batch, the sums over each task's images; it looks at no tensor's values.
        record: makes a recording; another one serves tests on a CPU.
    """

    def __init__(self, step: Step, record: Recorder = record_cuda_graph) -> None:
        self.step = step
        self.record = record
        self.forget()

    def forget(self) -> None:
        """Nothing is replayed until a shape has been seen anew."""
        self._shape, self._seen = None, 0
        self._inputs: Batch | None = None
        self._replay: Callable[[], TaskSums] | None = None

    def __call__(self, batch: Batch) -> TaskSums:
        """As `step`; the results are the caller's own."""
        if batch.known is None or batch.known.each is None:
            return self.step(batch)
        shape = batch.known.tasks, batch.pixel_values.shape
        if self._replay is not None and shape == self._shape:
            for held, given in zip(self._inputs[:3], batch[:3], strict=True):
                held.copy_(given, non_blocking=True)
            return self._replay().clone()
        if self._replay is not None:
            return self.step(batch)  # an odd one, which is not worth another recording
        self._seen = self._seen + 1 if shape == self._shape else 1
        self._shape = shape
        if self._seen > WARM_UP:
            tensors = [each.clone() for each in batch[:3]]
            self._inputs = Batch(*tensors, batch.known._replace(ids=tensors[1].long()))
            self._replay = self.record(self.step, self._inputs)
            logger.info(f"The lower step is recorded for {tuple(shape[1])} images of {len(shape[0])} tasks.")
            return self._replay().clone()
        return self.step(batch)
