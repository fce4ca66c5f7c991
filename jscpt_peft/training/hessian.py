"""Products with the Hessian of the scheduled loss, ∇²_θ Σ_i φ_i L_i (Eq. 11): exact or by differences, memory bounded.

Three ways, from the cheapest to the smallest: the lower step's own graph serves all products; a smaller batch has a
graph of its own; or every product makes the graphs of its chunks anew, one after the other, and holds one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import one_hot

from jscpt_peft.model.backbones.double_backward import full_precision, twice_differentiable
from jscpt_peft.model.heads import TaskParameters
from jscpt_peft.scheduling import hessian_vector_product
from jscpt_peft.scheduling.hypergradient import flatten

from .distributed import process_index, sum_over_processes, world_size
from .own_loss import OwnLoss
from .task_gradients import Batch, scheduled_gradient, task_gradients
from .task_sums import TaskSums

HESSIAN_PRODUCTS = ("exact", "finite_difference")


class GraphMemory(saved_tensors_hooks):
    """Context that counts the bytes which autograd keeps for a later backward, each storage once.

    Attributes:
        bytes: what the graphs made inside hold; parameters and inputs among it count too.
    """

    def __init__(self) -> None:
        self.bytes = 0
        # Not their addresses: what is freed while this counts leaves its own to the next one.
        self._seen: set[StorageWeakRef] = set()
        super().__init__(self._pack, lambda kept: kept)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (known := StorageWeakRef(storage)) not in self._seen:
            self._seen.add(known)
            self.bytes += storage.nbytes()
        return tensor.detach()  # the tensor itself may be what the node returns: a cycle that nothing frees

    def __enter__(self) -> GraphMemory:
        super().__enter__()
        return self


@dataclass(frozen=True)
class KeptGraph:
    """A lower batch whose gradients can still be differentiated.

    Attributes:
        sums: losses and gradients of every task, the latter with their graph.
        task_parameters: `model.task_parameters()` that the gradients belong to.
        bytes: what the graph holds.
    """

    sums: TaskSums
    task_parameters: TaskParameters
    bytes: int


def kept_graph(
    model: PeftModel, batch: Batch, reference: str | None = None, own_loss: OwnLoss | None = None
) -> KeptGraph:
    """`task_gradients` in float32 on twice differentiable kernels, with the graph of the gradients."""
    # Around the backward too: a checkpointed block runs again within it, and must choose the same kernel.
    with twice_differentiable(batch.pixel_values.device.type), GraphMemory() as memory:
        sums, task_parameters = task_gradients(model, batch, reference, create_graph=True, own_loss=own_loss)
    return KeptGraph(sums, task_parameters, memory.bytes)


def hessian_chunks(batches: Sequence[Batch], batch_size: int | None, chunk_size: int | None) -> list[Batch]:
    """What the Hessian is made of, in the pieces whose graphs are to be held one at a time.

    Args:
        batches: this process's batches of the lower step, in order.
        batch_size: so many images of every task of the whole step, evenly spread over its batches and processes;
            `None`: all.
        chunk_size: pieces of one task and at most so many of its images; `None`: the batches as they are, or what
            `batch_size` takes of them in one piece, whose graph then serves all products.
    """
    if batch_size is None and chunk_size is None:
        return [batch for batch in batches if len(batch.labels)]
    if batch_size is not None:
        batches = _evenly_spread(batches, batch_size, process_index(), world_size())
    whole = Batch(*(torch.cat(parts) for parts in zip(*(batch[:3] for batch in batches), strict=True)))
    if chunk_size is None:
        return [whole] if len(whole.labels) else []
    return [
        whole.rows(piece)
        for task in whole.task_ids.unique()
        for piece in (whole.task_ids == task).nonzero()[:, 0].split(chunk_size)
    ]


def _evenly_spread(batches: Sequence[Batch], size: int, rank: int, ranks: int) -> list[Batch]:
    """A choice that depends on an image's place in the step alone, not on how the step is cut into batches.

    The step's images of a task are those of its first batch, process after process, then those of the second, ...;
    every process has equally many.
    """
    num_tasks = 1 + max(int(batch.task_ids.max()) for batch in batches)
    counts = [torch.bincount(batch.task_ids, minlength=num_tasks) for batch in batches]
    total, before, chosen = ranks * sum(counts), torch.zeros_like(counts[0]), []
    for batch, count in zip(batches, counts, strict=True):
        within = (one_hot(batch.task_ids, num_tasks).cumsum(0) - 1).gather(1, batch.task_ids[:, None])[:, 0]
        place = (before + rank * count)[batch.task_ids] + within
        of = total[batch.task_ids]
        # The places at which ⌊place · size / total⌋ steps up; all of them where there are not more than `size`.
        chosen.append(batch.rows((place * size // of != (place - 1) * size // of) | (of <= size)))
        before = before + ranks * count
    return chosen


class HessianProduct:
    """The function v -> ∇²_θ (Σ_i φ_i L_i) v, L_i the mean loss of task i's images of all processes.

    Args:
        model: the JSCPT model.
        parameters: θ, whose elements in this order are those of the vectors `[P]`.
        chunks: this process's images, as `hessian_chunks` gives them. A single chunk keeps its graph for all products.
        weights: `[N]` φ, constant; tasks with weight 0 are left out.
        method: "exact" differentiates the gradient; "finite_difference" takes the central difference of two float32
            gradients, which needs no second derivative and therefore no MATH kernel: the memory of a plain backward.
        kept: the graph of the only chunk, where there is one.
        own_loss: takes the place of Eq. 3.

    Attributes:
        graph_bytes: most that the graph of one chunk held so far.
    """

    def __init__(
        self,
        model: PeftModel,
        parameters: Sequence[Tensor],
        chunks: Sequence[Batch],
        weights: Tensor,
        method: str = "exact",
        kept: KeptGraph | None = None,
        own_loss: OwnLoss | None = None,
    ) -> None:
        self.model = model
        self.parameters = tuple(parameters)
        self.method = method
        self.own_loss = own_loss
        self.device_type = weights.device.type
        self.graph_bytes = 0
        # A process may hold none of the chosen images.
        nothing = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
        counts = sum((torch.bincount(chunk.task_ids, minlength=len(weights)) for chunk in chunks), nothing)
        self.scales = weights.detach() / sum_over_processes([counts])[0].clamp(min=1)
        chunks = [chunk.rows(self.scales[chunk.task_ids] != 0) for chunk in chunks]
        self.chunks = [chunk for chunk in chunks if len(chunk.labels)]
        self._product: Callable[[Tensor], Tensor] | None = None if kept is None else self._of_graph(kept)

    def __call__(self, vector: Tensor) -> Tensor:
        product = self._difference(vector) if self.method == "finite_difference" else self._exact(vector)
        return sum_over_processes([product])[0]

    def _exact(self, vector: Tensor) -> Tensor:
        with twice_differentiable(self.device_type):  # also for checkpointed blocks that run again in the product
            if self._product is None and len(self.chunks) == 1:
                self._product = self._of_chunk(self.chunks[0])
            if self._product is not None:
                return self._product(vector)
            return sum((self._of_chunk(chunk)(vector) for chunk in self.chunks), torch.zeros_like(vector))

    def _of_chunk(self, chunk: Batch) -> Callable[[Tensor], Tensor]:
        return self._of_graph(kept_graph(self.model, chunk, own_loss=self.own_loss))

    def _of_graph(self, kept: KeptGraph) -> Callable[[Tensor], Tensor]:
        self.graph_bytes = max(self.graph_bytes, kept.bytes)
        gradients = scheduled_gradient(
            kept.task_parameters, self.parameters, kept.sums.gradients, self.scales, create_graph=True
        )
        return hessian_vector_product(gradients, self.parameters)

    def _difference(self, vector: Tensor) -> Tensor:
        """(∇L(θ + hv) - ∇L(θ - hv)) / 2h, with the h that balances rounding against the third derivative."""
        theta = flatten([parameter.detach() for parameter in self.parameters])
        norm = torch.linalg.vector_norm(vector)
        if norm == 0:
            return torch.zeros_like(vector)
        step = torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + torch.linalg.vector_norm(theta)) / norm
        try:
            above, below = (self._gradient_at(theta + sign * step * vector) for sign in (1, -1))
        finally:
            self._set(theta)
        return (above - below) / (2 * step)

    def _gradient_at(self, theta: Tensor) -> Tensor:
        self._set(theta)
        total = torch.zeros_like(theta)
        with full_precision(self.device_type):
            for chunk in self.chunks:
                with GraphMemory() as memory:
                    sums, task_parameters = task_gradients(self.model, chunk, own_loss=self.own_loss)
                self.graph_bytes = max(self.graph_bytes, memory.bytes)
                total += flatten(scheduled_gradient(task_parameters, self.parameters, sums.gradients, self.scales))
        return total

    @torch.no_grad()
    def _set(self, theta: Tensor) -> None:
        parts = theta.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
