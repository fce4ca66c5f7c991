"""One run per output directory: a lock that the kernel releases when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows
    flock = None

_held: set[int] = set()


@contextmanager
def output_lock(directory: str | Path) -> Iterator[None]:
    """Within, no other process can enter this for the same directory; where a file system knows no locks, all can.

    Raises:
        BlockingIOError: another run writes to it.
    """
    if flock is None:
        yield
        return
    Path(directory).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    _held.add(descriptor)
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError as error:
        _release(descriptor)
        raise BlockingIOError(
            f"`output_dir` {directory} is being written by another run: choose another directory, or wait for its end."
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        _release(descriptor)


def _release(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _close_in_child() -> None:
    """Data workers may outlive a run that is killed; they must not hold its lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
