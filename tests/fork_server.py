"""Programs in processes of their own that need not import torch, transformers and peft each: they are forked.

    done = fork_server.run([sys.executable, "recipes/train.py", "--help"], cwd=folder)
    process = fork_server.start([sys.executable, "-c", "..."], log=folder / "log")

One server per test session (`multiprocessing`'s) imports the libraries once, in five to ten seconds. A child of it is
what `python program` would be: arguments, environment, directory, output, signals and exit status are its own. What
Hugging Face's libraries have read from the environment while they were imported, such as `HF_ENDPOINT`, is read again.
Two things differ: all children hash strings alike, and the server's modules are there whether or not a program imports
them. Start a real process (`subprocess`) where that matters, and where memory or the import itself is measured.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from paths import ROOT

NOT_OF_PROGRAMS = [str(ROOT / name) for name in ("tests", "recipes", "tools")]  # on the path of tests alone

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["preloaded", __name__])
started: list[Process] = []


class Process(context.Process):
    """With what tests use of `subprocess.Popen`."""

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired(self.name, timeout)
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@atexit.register  # before multiprocessing's own, which waits for all
def _kill_all() -> None:
    for process in started:
        process.kill()


def start(
    command: Sequence[str],
    log: Path,
    errors: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
) -> Process:
    """Starts `[sys.executable, "file.py" | "-c" | "-m", ...]`.

    Args:
        command: as for `subprocess.Popen`.
        log: file for its output, overwritten.
        errors: file for its standard error; with its output if not given.
        env: the whole environment; that of this process if not given.
        cwd: its working directory; that of this process if not given.
    """
    assert command[0] == sys.executable, command
    outputs = [Path(path or log).resolve() for path in (log, errors)]
    for path in outputs:
        path.write_bytes(b"")
    arguments = ([str(word) for word in command[1:]], dict(env or os.environ), str(cwd or os.getcwd()), outputs)
    _ensure_server()
    process = Process(target=_child, args=arguments, name=" ".join(map(str, command))[:200])
    process.start()
    started.append(process)
    return process


def _ensure_server() -> None:
    """Starts the server, at first use; it finds modules where this process does."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()


def run(command: Sequence[str], timeout: float = 300, **options) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(command, capture_output=True, text=True)`; `options` are `env` and `cwd` of `start`."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = start(command, output, errors, **options)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, code, output.read_text("utf-8"), errors.read_text("utf-8"))


# ---- in the child ---------------------------------------------------------------------------------------------------


def _child(words: list[str], environment: dict[str, str], directory: str, outputs: list[Path]) -> None:
    assert "preloaded" in sys.modules  # the server keeps an error of its import to itself
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(each, "w", encoding="utf-8", closefd=False) for each in (1, 2))
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # data workers are started as in any process
    tempfile.tempdir = None
    sys.modules["numpy"].random.seed()
    _read_environment_again()
    first = {"-c": "", "-m": directory}.get(words[0], str(Path(words[0]).resolve().parent))
    further = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [first, *further, *(path for path in sys.path if path not in NOT_OF_PROGRAMS)]
    _end(_outcome(lambda: _run(words)))


def _run(words: list[str]) -> None:
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _outcome(program: Callable[[], None]) -> int:
    """The exit status; negative is a signal's number."""
    try:
        program()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> None:
    """Ends this process as the interpreter does."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _read_environment_again() -> None:
    """Modules that hold what the environment said get what it says now, and so do those that have imported it."""
    users = [module for name, module in sys.modules.items() if name.startswith(("huggingface_hub.", "datasets."))]
    for name in ("huggingface_hub.constants", "datasets.config"):
        source = sys.modules[name]
        before = {constant: value for constant, value in vars(source).items() if constant.isupper()}
        importlib.reload(source)
        for module in users:
            for constant, value in before.items():
                if vars(module).get(constant) is value:
                    setattr(module, constant, getattr(source, constant))
    sys.modules["huggingface_hub.hf_api"].api.endpoint = sys.modules["huggingface_hub.constants"].ENDPOINT
