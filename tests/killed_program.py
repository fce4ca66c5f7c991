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

from jscpt_peft.training.checkpoint import SEAL


def kill_in(owner, name: str, is_meant, when: str) -> None:
    """Makes this process kill itself in the call of `owner.name` that is meant: before, after or `within` it."""
    original = getattr(owner, name)

    def call(*arguments, **keywords):
        if not is_meant(*map(str, arguments)):
            return original(*arguments, **keywords)
        if when != "before":
            result = original(*arguments, **keywords)
        if when == "within":
            path = Path(str(arguments[1] if name == "save" else arguments[0]))
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


def torch_saves(name):
    return lambda *arguments: arguments[1].endswith(f"checkpoint-4/{name}")


KILLS = {
    "adapter": (torch, "save", torch_saves("training_args.bin"), "before"),
    "optimizer": (torch, "save", torch_saves("optimizer.pt"), "within"),
    "Ω": (torch, "save", torch_saves("task_scheduler.pt"), "within"),
    "random numbers": (torch, "save", torch_saves("rng_state.pth"), "after"),
    "seal": (Path, "write_text", lambda path, *_: path.endswith(f"checkpoint-4/{SEAL}"), "within"),
    "before the name": (Path, "rename", lambda _, target: target.endswith("checkpoint-4"), "before"),
    "after the name": (Path, "rename", lambda _, target: target.endswith("checkpoint-4"), "after"),
    "deletion": (shutil, "rmtree", lambda path, *_: path.endswith("checkpoint-2"), "before"),
}


def main(root: str, options: dict) -> None:
    """Starts one run for each of `KILLS`, in `root/<its number>`; prints the signals that ended them.

    The processes are forked before anything has run here: threads, which a fork does not copy, are not there yet.
    """
    signals = []
    for number, kill in enumerate(KILLS.values()):
        child = os.fork()
        if child == 0:
            kill_in(*kill)
            small_run.trainer(Path(root, str(number)), **options).train()
            os._exit(1)
        signals.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print("exit codes:", json.dumps(signals))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]))
