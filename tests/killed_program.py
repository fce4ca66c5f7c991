"""Runs of `small_run` that are killed while they write a checkpoint, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import small_run
import torch


def kill_in(owner, name: str, is_meant, when: str) -> None:
    """Makes this process kill itself in the call of `owner.name` that is meant: before it, or `within` writing."""
    original = getattr(owner, name)

    def call(*arguments, **keywords):
        if not is_meant(*map(str, arguments)):
            return original(*arguments, **keywords)
        if when == "within":
            original(*arguments, **keywords)
            path = Path(arguments[1])
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, call)


# In `test_checkpoint` a checkpoint's files are written and named alone, and killed at every call.
KILLS = {
    "optimizer": (torch, "save", lambda *arguments: arguments[1].endswith("checkpoint-4/optimizer.pt"), "within"),
    "before the name": (Path, "rename", lambda _, target: target.endswith("checkpoint-4"), "before"),
    "deletion": (shutil, "rmtree", lambda path, *_: path.endswith("checkpoint-2"), "before"),
}


def in_a_child(action) -> int:
    """Runs `action` in a forked process; its exit code.

    Forked before anything has run here: threads, which a fork does not copy, are not there yet. And all children
    compute alike, whatever a library that some test has loaded does to the processor's floating-point modes.
    """
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(folder: Path, options: dict, resume: bool = False) -> None:
    """A run in `folder`; what it has come to in `<folder>.pt`, what it says in `<folder>.log`."""
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)
    run = small_run.trainer(folder, **options)
    run.train(resume_from_checkpoint=resume)
    outcome = {"parameters": small_run.trained_parameters(run), "upper level": run.upper_level.state_dict()}
    torch.save({**outcome, "optimizer": run.optimizer.state_dict()}, folder.with_suffix(".pt"))


def main(root: str, options: dict) -> None:
    """An undisturbed run in `root/whole`; and for each of `KILLS` one that dies and then goes on, in `root/<number>`.

    Prints the exit codes of those that die, and which checkpoints each left.
    """
    codes, left = [], []
    assert in_a_child(lambda: train(Path(root, "whole"), options)) == 0
    for number, kill in enumerate(KILLS.values()):
        folder = Path(root, str(number))
        codes.append(in_a_child(lambda: (kill_in(*kill), train(folder, options))))  # noqa: B023 (runs at once)
        left.append(sorted(path.name for path in folder.glob("checkpoint-*")))
        assert in_a_child(lambda: train(folder, options, resume=True)) == 0  # noqa: B023
    print(json.dumps({"codes": codes, "left": left}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]))
