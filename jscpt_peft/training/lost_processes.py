"""Names the cause where a data worker or another process of the run dies, hangs, or meets what it cannot read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .distributed import process_index, world_size

# How gloo, NCCL and the store begin to speak of a process that has ended or does not answer.
LOST_PROCESS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Wait timeout",
    "Application timeout",
    "Socket Timeout",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "collective operation timeout",
)
GO_ON = "Saved checkpoints are whole: go on with `resume_from_checkpoint=True`."


@contextmanager
def lost_processes_named(timeout: float) -> Iterator[None]:
    """Tells the user what to do instead of what a loader or a communication ran into.

    After `timeout` seconds (`ddp_timeout`) a silent process counts as lost.

    Raises:
        ChildProcessError: a data worker died or did not answer.
        ConnectionError: another process is lost.
        OSError: an image cannot be read; the message names it.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if world_size() > 1 and any(words in said for words in LOST_PROCESS):
            raise ConnectionError(
                f"process {process_index()} of {world_size()} has lost another one, which ended or did not answer "
                f"within {timeout:.0f} seconds (`ddp_timeout`); that one's own output says why. {GO_ON} "
                f"({said.splitlines()[0]})"
            ) from error
        if "DataLoader" in said and not said.startswith("Caught "):  # which comes with a worker's own traceback
            raise ChildProcessError(
                f"a data worker died or hangs ({said.splitlines()[0]}). Where memory ran out, lower "
                f"`dataloader_num_workers`; a slow disk needs a longer `dataloader_timeout`. {GO_ON}"
            ) from error
        raise
    except OSError as error:
        if "DataLoader worker process" not in str(error):
            raise
        # The worker's traceback is part of the message; its last line is the error.
        raise OSError(str(error).strip().splitlines()[-1].removeprefix("OSError: ")) from error
