"""Several processes of a program that work together, as `torchrun` would start them."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import fork_server
import torch

PROGRAM = Path(__file__).with_name("training_program.py")
TIMEOUT = 240  # seconds; a run takes a few


def start(count: int, folder: Path, **options) -> list[fork_server.Process]:
    """Starts `count` processes; `options` are those of `training_program.main`. Output goes to `folder/<rank>.log`."""
    return launch(count, folder, [str(PROGRAM), json.dumps({"folder": str(folder), **options})])


def launch(count: int, folder: Path, program: list[str]) -> list[fork_server.Process]:
    """Starts `count` processes of a program and its arguments. Output goes to `folder/<rank>.log`."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count} if count > 1 else {}
        environment = {**os.environ, **{name: str(value) for name, value in ranks.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        environment["ACCELERATE_USE_CPU"] = "true"
        log = folder / f"{rank}.log"
        processes.append(fork_server.start([sys.executable, *program], log, env=environment))
    return processes


def wait(processes: list[fork_server.Process]) -> list[int]:
    """The exit codes of all, within `TIMEOUT`."""
    try:
        return [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()


def output(folder: Path, rank: int) -> str:
    """What a process printed."""
    return (folder / f"{rank}.log").read_text(encoding="utf-8")


def run(count: int, folder: Path, **options) -> list[dict]:
    """The results of all processes, which must end without error."""
    codes = wait(start(count, folder, **options))
    assert codes == [0] * count, "\n".join(output(folder, rank)[-3000:] for rank in range(count))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]
