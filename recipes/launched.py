"""What a program has started ends with it: a training with `accelerate launch`, the runs of a table with the table."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def end_with_launcher() -> None:
    """SIGTERM to `accelerate launch` reaches the training, which with one process it would leave behind.

    On Linux the kernel sends SIGTERM when the launcher ends. Without a launcher nothing changes: a training that a
    shell has started outlives it as ever.
    """
    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ  # what the launcher sets
    if alone:
        end_with_parent(os.getppid())


def end_with_parent(parent: int) -> None:
    """On Linux this process gets SIGTERM when the thread ends that started it, in the process `parent`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it has ended before
            signal.raise_signal(signal.SIGTERM)
