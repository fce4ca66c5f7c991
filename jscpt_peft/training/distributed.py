"""What several processes do together: sums, decisions of the first one, and an orderly end.

`torch.autograd.grad` fires no hooks of `DistributedDataParallel`: what the processes have to agree on is summed here.
After a sum all hold the same bits, so that whatever they compute from it (Δ, A, φ, θ, Ω) stays the same too.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Result = TypeVar("Result")


def join_on_cpu(timeout: float) -> None:
    """Connects CPU processes that a launcher has started, with a bound in seconds on how long one waits for another.

    Transformers hands its `ddp_timeout` to the process group of GPUs alone; a group that is there already it keeps.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        atexit.register(_disconnect_at_exit)


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors summed over all processes, by one communication; the same bits everywhere.

    Args:
        tensors: of any shapes and types, the same in every process; integers and booleans come back as integers.
    """
    if world_size() == 1:
        return list(tensors)
    kind = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            kind = torch.promote_types(kind, tensor.dtype)
    flat = torch.cat([tensor.detach().reshape(-1).to(kind) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [
        part.view(tensor.shape).to(tensor.dtype if tensor.is_floating_point() else torch.int64)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def gather_objects(value: Any) -> list[Any]:
    """One small Python object of every process, in their order, known to all."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def by_first_process(function: Callable[[], Result]) -> Result:
    """What `function` returns or raises in the first process, in all of them; the others wait and do not run it.

    For what must happen once (looking into an output directory before anything is written) or be decided alike.
    Results have to be picklable; an error is shared by its text, as a `ValueError`, `OSError` or `RuntimeError`.
    """
    if world_size() == 1:
        return function()
    shared: list[Any] = [None, None, None]
    if process_index() == 0:
        try:
            shared[0] = function()
        except Exception as error:  # whatever it is, the others wait for it
            kind = next((each for each in (ValueError, OSError) if isinstance(error, each)), RuntimeError)
            dist.broadcast_object_list([None, kind, str(error)], src=0)
            raise
    dist.broadcast_object_list(shared, src=0)
    result, kind, message = shared
    if kind is not None:
        raise kind(message)
    return result


def wait_for_all() -> None:
    """Returns when every process has arrived here."""
    if world_size() > 1:
        dist.barrier()


def leave() -> None:
    """Ends the processes' connection, when all of them are done."""
    wait_for_all()
    _disconnect()


def give_up(code: int) -> NoReturn:
    """Ends this process after an error that has been told, without waiting for the others.

    What an open connection leaves to the interpreter's shutdown now and then aborts the process (gloo), and the
    launcher would report that instead: of several processes none shuts down.
    """
    if world_size() == 1:
        sys.exit(code)
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _disconnect_at_exit() -> None:
    if world_size() > 1 and hasattr(sys, "last_value"):  # an exception that nobody caught, and that has been printed
        give_up(1)
    _disconnect()
