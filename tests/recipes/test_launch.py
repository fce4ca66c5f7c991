"""Training as a user starts it: by `python`, and by `accelerate launch` with the project's own configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fork_server
import processes
import pytest
from paths import RECIPES, ROOT
from recipe_runs import draw_images

from jscpt_peft.evaluation import read_history

CONFIGURATION = RECIPES / "configs" / "accelerate" / "two_cpu_processes.yaml"
QUICK = ["--use_cpu", "--eval_strategy", "no", "--lower_steps", "2", "--per_device_train_batch_size", "2"]
TIMEOUT = 300

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """The arguments for a few images, which are evaluated fast."""
    return ["--task_set", "folder", "--data_root", str(draw_images(tmp_path_factory.mktemp("images"), suffix="png"))]


# As for `python recipes/train.py`, recipes/ is first on its path; the library `evaluate`, which it hides, is not used.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(RECIPES)!r})
import train, predict, export, tested_images, benchmark, evaluate
try:
    train.main(sys.argv[1:])
finally:
    print(evaluate.__file__, "jscpt_peft.evaluation.metric" in sys.modules)
"""


def launch(folder: Path, *arguments: str) -> fork_server.Process:
    """The launcher, whose own processes are real ones, which nothing has prepared."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATION)]
    command += ["--main_process_port", "0", str(folder / "program.py"), *QUICK, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return fork_server.start(command, folder / "log", env=environment)


def said(folder: Path) -> str:
    return " ".join("".join(log.read_text(encoding="utf-8") for log in folder.glob("*log")).split())


def run(folder: Path, *arguments: str) -> list[int]:
    """The exit codes of two processes that are started as the launcher starts its own."""
    (folder / "log").unlink(missing_ok=True)
    return processes.wait(processes.launch(2, folder, [str(ROOT / "recipes" / "train.py"), *QUICK, *arguments]))


def test_trains_evaluates_and_writes_once(tmp_path, data):
    output = tmp_path / "out"
    arguments = [*data, "--output_dir", str(output), "--max_steps", "4"]
    arguments += ["--method", "hipro", "--groups", "auto", "--warm_up_batches", "2"]
    assert run(tmp_path, *arguments) == [0, 0], said(tmp_path)
    names = {path.name for path in output.iterdir()}
    assert {"adapter_model.safetensors", "manifest.json", "results.json", "losses.png", "groups.yaml"} <= names
    assert [row["step"] for row in read_history(output / "scheduler_history.jsonl")] == [1, 2, 3, 4]
    for once in ("trainable params", "zero-shot", "Groups:", "Adapter and results:"):
        assert said(tmp_path).count(once) == 1, once
    # A second run into the same directory is refused by all of them, with one reason.
    assert run(tmp_path, *arguments) == [1, 1]
    assert "is not empty: choose another" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux' own")
def test_sigterm_to_the_launcher_of_one_process_reaches_it(tmp_path):
    program = (
        "import signal, sys, time, launched; launched.end_with_launcher(); signal.signal(signal.SIGTERM, "
        "lambda *_: sys.exit(open('reached', 'w').close())); open('ready', 'w').close(); time.sleep(60)"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    paths = {"PYTHONPATH": str(ROOT / "recipes"), "ACCELERATE_MIXED_PRECISION": "no"}
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=tmp_path, env={**os.environ, **paths})
    for name in ("ready", "reached"):
        start = time.monotonic()
        while not (tmp_path / name).exists():
            assert time.monotonic() - start < 30, name
            time.sleep(0.05)
        process.terminate()


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path, data):
    output = tmp_path / "out"
    arguments = [*data, "--logging_steps", "1", "--output_dir", str(output), "--max_steps", "2000"]
    process = launch(tmp_path, *arguments)
    start = time.monotonic()
    while "step" not in said(tmp_path).partition("trainable params")[2] and time.monotonic() - start < TIMEOUT:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) != 0
    assert said(tmp_path).count(f"{RECIPES / 'evaluate.py'} False") >= 1
    users = [file for file in (ROOT / "jscpt_peft").rglob("*.py") if "import evaluate\n" in file.read_text()]
    assert [file.name for file in users] == ["metric.py"]
    assert "is saved in" in said(tmp_path) and "--resume_from_checkpoint last" in said(tmp_path)
    (checkpoint,) = output.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 0 < step < 2000
    arguments[-1] = str(step + 1)
    assert run(tmp_path, *arguments, "--resume_from_checkpoint", "last") == [0, 0], said(tmp_path)
    assert [row["step"] for row in read_history(output / "scheduler_history.jsonl")] == list(range(1, step + 2))
    assert "`max_steps` (2000, now" in said(tmp_path)  # another schedule than the run would have had
