"""A forked program is what a process of its own would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import fork_server
import pytest

PROGRAM = """
import json, multiprocessing, os, sys
import datasets, huggingface_hub, transformers
names = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "MINE")
print(json.dumps({
    "main": __name__,
    "arguments": sys.argv,
    "folder": os.getcwd(),
    "path": sys.path[:2],
    "mine": os.environ.get("MINE"),
    "endpoints": [huggingface_hub.constants.ENDPOINT, huggingface_hub.HfApi().endpoint, datasets.config.HF_ENDPOINT],
    "template": huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE,
    "bound": huggingface_hub.create_repo.__self__.endpoint,
    "caches": [huggingface_hub.constants.HF_HUB_CACHE, str(datasets.config.HF_DATASETS_CACHE)],
    "offline": [huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE],
    "start method": multiprocessing.get_start_method(),
    "at SIGINT": __import__("signal").getsignal(2).__name__,
    "handled": [__import__("signal").getsignal(number).name for number in (15, 17)],
    "input": sys.stdin.read(),
}))
print("to errors", file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["-c", "file", "-m"])
def test_it_is_what_a_real_process_is(tmp_path, kind):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "elsewhere").mkdir()
    command = {"-c": ["-c", PROGRAM], "file": [str(tmp_path / "program.py")], "-m": ["-m", "program"]}[kind]
    command = [sys.executable, *command, "one", "two words"]
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "MINE": "1"}
    env |= {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(tmp_path)}
    options = {"cwd": tmp_path / "elsewhere", "env": env}
    done = fork_server.run(command, **options)
    assert (done.returncode, done.stderr) == (0, "to errors\n")
    real = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, **options)
    assert json.loads(done.stdout) == json.loads(real.stdout)


@pytest.mark.parametrize(
    ("program", "code", "output", "errors"),
    [
        ("import sys; sys.exit(3)", 3, "", ""),
        ("import sys; sys.exit('a reason')", 1, "", "a reason\n"),
        ("import atexit; atexit.register(print, 'last'); print('first')", 0, "first\nlast\n", ""),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print(1))).start()", 0, "1\n", ""),
        ("raise ValueError('x')", 1, "", "ValueError: x\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "", "KeyboardInterrupt\n"),
        ("import os; os._exit(5)", 5, "", ""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, "", ""),
    ],
)
def test_how_it_ends(program, code, output, errors):
    done = fork_server.run([sys.executable, "-c", program])
    assert (done.returncode, done.stdout) == (code, output)
    assert done.stderr.endswith(errors) and bool(done.stderr) == bool(errors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(tmp_path, number):
    process = fork_server.start(
        [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"], tmp_path / "log"
    )
    while not (tmp_path / "log").read_text():
        time.sleep(0.01)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(number)
    assert process.wait(10) == process.returncode == -number
    process.send_signal(number)  # to one that has ended: nothing


def test_no_library_is_imported_again():
    start = time.monotonic()
    assert fork_server.run([sys.executable, "-c", "import torch, peft, jscpt_peft.training"]).returncode == 0
    assert time.monotonic() - start < 3
