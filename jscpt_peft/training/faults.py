"""What can go wrong in a week of training: a state that is to be gone back from, workers and processes that die."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .distributed import lost_process_named


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


@contextmanager
def faults_named(timeout: float) -> Iterator[None]:
    """Names the cause where a data worker or another process dies, or a worker meets an image it cannot read.

    Args:
        timeout: seconds after which a silent process counts as lost.

    Raises:
        ChildProcessError: a data worker died or did not answer.
        ConnectionError: another process is lost.
        OSError: an image cannot be read; the message names it.
    """
    try:
        with lost_process_named(timeout):
            yield
    except RuntimeError as error:
        if "DataLoader" not in str(error) or str(error).startswith("Caught "):  # the latter with a worker's traceback
            raise
        raise ChildProcessError(
            f"a data worker died or hangs ({str(error).splitlines()[0]}). Where memory ran out, lower "
            "`dataloader_num_workers`; a slow disk needs a longer `dataloader_timeout`. Saved checkpoints are whole: "
            "go on with `resume_from_checkpoint=True`."
        ) from error
    except OSError as error:
        if "DataLoader worker process" not in str(error):
            raise
        # The worker's traceback is part of the message; its last line is the error.
        raise OSError(str(error).strip().splitlines()[-1].removeprefix("OSError: ")) from error


def ignore_interrupts(_worker: int) -> None:
    """For data workers: Ctrl-C is the main process's to answer, which still needs the batches under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the main process's handler: this is how a loader ends them
