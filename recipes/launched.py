"""A training that `accelerate launch` has started ends with it."""

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
    if sys.platform == "linux" and alone:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
