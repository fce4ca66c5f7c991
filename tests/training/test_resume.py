"""A run that was stopped and goes on is, bit for bit, the one that never stopped; no fault costs more than a save."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sys
from functools import cache, partial
from pathlib import Path

import fork_server
import killed_program
import numpy as np
import prompted
import pytest
import small_run
import torch
from full_disk import no_file_larger_than
from transformers import PrinterCallback, TrainerCallback

from jscpt_peft.evaluation import read_history
from jscpt_peft.training.checkpoint import DIGESTS, check_checkpoint, last_valid_checkpoint
from jscpt_peft.training.step_log import HISTORY_FILE

# What a kill leaves of the history's last line is left out, with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*breaks off and is left out", "ignore:.*is_gradient_checkpointing")

assert_same = partial(torch.testing.assert_close, atol=0, rtol=0, equal_nan=True)

# Three steps an epoch: five end in the middle of the second one.
COMMON = {"max_steps": 5, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 1}
VARIANTS = {
    "sgd": {"warmup_steps": 2, "num_train_epochs": 2, "max_steps": -1},
    "adamw, Ω by sgd, accumulation": {
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "scheduler_optimizer": "sgd",
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "gradient_aggregator": "gradvac",
    },
    "auto, no Hessian": {
        "lower_steps": "auto",
        "scheduler_learning_rate": "auto",
        "neumann_terms": 0,
        "weight_decay": 0.1,
        "weigh_own_steps": True,
        "task_prior": 1.0,
    },
    "vision, data workers": {"dataloader_num_workers": 1},  # class features are kept between steps
    # The schedule looks at the evaluation that follows an epoch's last step, which is saved as every step is.
    "plateau": {"eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True},
}
# In the middle of an epoch after an update of Ω, at its end before the next one, and after the last step.
STOPS = {"sgd": (2, 3, 6), "plateau": (3, 5), "evaluation": (2, 5)}


class Noise(TrainerCallback):
    """As dropout would: makes every step depend on the state of all random number generators."""

    def on_pre_optimizer_step(self, *_, model, **__):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad += 0.01 * (torch.randn_like(parameter.grad) + random.random() + np.random.rand())


def new_run(folder, variant="sgd", model=None, callbacks=(), **options):
    if variant.startswith("vision"):
        model = prompted.prompted_clip(torch.float32, towers="vision")
    options = {**COMMON, **VARIANTS[variant], **options}
    return small_run.trainer(folder, model, callbacks=[Noise(), *callbacks], **options)


def outcome(run) -> dict:
    """All that a run has come to, in numbers and tensors."""
    measured = [
        {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second"))}
        for entry in run.state.log_history
        if "train_runtime" not in entry
    ]
    return {
        "parameters": small_run.trained_parameters(run),
        "upper level": run.upper_level.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "learning rates": run.lr_scheduler.get_last_lr(),
        "schedule": {
            name: value for name, value in run.lr_scheduler.state_dict().items() if not isinstance(value, str)
        },
        "step": (run.state.global_step, run.state.epoch),
        "best": (run.state.best_metric, run.state.best_global_step),
        "logs": measured,
        "history": [
            {name: value for name, value in row.items() if name != "tasks"}
            for row in read_history(Path(run.args.output_dir, HISTORY_FILE))
        ],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(variant)`: the outcome of a run that never stopped, and its folder with a checkpoint a step."""
    root = tmp_path_factory.mktemp("undisturbed")

    @cache
    def result(variant: str) -> tuple[dict, Path]:
        folder = root / str(list(VARIANTS).index(variant))
        run = new_run(folder, variant)
        run.train()
        assert run.state.global_step == (6 if variant == "sgd" else 5)
        return outcome(run), folder

    return result


def stopped_at(step: int, whole: Path, folder: Path) -> Path:
    """The folder of a run as a kill soon after the checkpoint of a step has left it; its history goes further."""
    shutil.copytree(whole, folder)
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(checkpoint)
    rows = (folder / HISTORY_FILE).read_text().splitlines(keepends=True)[: step + 1]
    (folder / HISTORY_FILE).write_text("".join(rows)[:-20])
    return folder


@pytest.mark.parametrize(("variant", "step"), [(name, step) for name in VARIANTS for step in STOPS.get(name, (2,))])
def test_a_run_stopped_at_any_step_is_the_one_that_never_stopped(tmp_path, undisturbed, caplog, variant, step):
    whole, folder = undisturbed(variant)
    last, _ = whole["step"]
    if step == last:
        shutil.copytree(folder, tmp_path / "run")
    else:
        stopped_at(step, folder, tmp_path / "run")
    torch.manual_seed(99)
    run = new_run(tmp_path / "run", variant)
    run.train(resume_from_checkpoint=True)
    assert_same(outcome(run), whole)
    assert whole["upper level"]["updates"] >= 2
    assert "The run goes on, but" not in caplog.text
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert steps == list(range(1, last + 1))


def test_saving_disturbs_nothing(tmp_path, undisturbed):
    run = new_run(tmp_path, save_strategy="no")
    run.train()
    assert_same(outcome(run), undisturbed("sgd")[0])


# ---- killed while saving --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    """What `killed_program` leaves and prints."""
    root = tmp_path_factory.mktemp("killed")
    options = json.dumps({**COMMON, "save_steps": 2, "save_total_limit": 1})
    command = [sys.executable, killed_program.__file__, str(root), options]
    done = fork_server.run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kill", killed_program.KILLS)
def test_killed_while_saving(killed_runs, kill):
    """SIGKILL in the second checkpoint of a run that keeps one; the first stays until the second is whole."""
    root, printed = killed_runs
    number = list(killed_program.KILLS).index(kill)
    assert printed["codes"][number] == -signal.SIGKILL
    named = kill == "deletion"
    assert printed["left"][number] == ["checkpoint-2", "checkpoint-4"][: 1 + named]
    last = "checkpoint-4" if named or kill == "before the name" else "checkpoint-2"  # it lacked nothing but its name
    assert f"Going on from {root / str(number) / last}." in (root / f"{number}.log").read_text()
    resumed, whole = (torch.load(root / f"{name}.pt", weights_only=True) for name in (number, "whole"))
    assert_same(resumed, whole)
    assert [path.name for path in (root / str(number)).iterdir() if path.is_dir()] == ["checkpoint-5"]


# ---- a full disk ----------------------------------------------------------------------------------------------------


class FullDisk(TrainerCallback):
    """From the end of a step to the beginning of the next one."""

    def __init__(self, limit, step=4):
        self.step, self.full = step, no_file_larger_than(limit)

    def on_step_end(self, _args, state, _control, **_):
        if state.global_step == self.step:
            self.full.__enter__()

    def on_step_begin(self, _args, state, _control, **_):
        if state.global_step == self.step:
            self.full.__exit__(None, None, None)


# Too small for the optimizer's file; for the adapter's, and for the history.
@pytest.mark.parametrize(("limit", "error"), [(14_000, "RuntimeError"), (2_500, "OSError")])
def test_a_full_disk_costs_one_checkpoint(tmp_path, undisturbed, caplog, limit, error):
    """Training goes on, the checkpoint before stays although only one is to be kept, and the next one is whole."""
    seen = {}

    class Look(TrainerCallback):
        def on_step_begin(self, _args, state, _control, **_):
            if state.global_step == 4:
                seen["valid"] = last_valid_checkpoint(tmp_path, run.fixed_configuration())
                seen["folders"] = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
                seen["unsaved"] = run.unsaved_error

    run = new_run(tmp_path, callbacks=[FullDisk(limit), Look()], save_steps=2, save_total_limit=1)
    run.remove_callback(PrinterCallback)  # what it prints may go to a file
    run.train()
    assert seen["valid"] == (tmp_path / "checkpoint-2", {}) and seen["folders"] == ["checkpoint-2"]
    assert seen["unsaved"].startswith(error) and run.unsaved_error is None
    assert f"checkpoint-4 could not be written and is left out ({error}" in caplog.text
    assert ("its rows are kept in memory until it can be" in caplog.text) == (limit == 2_500)
    assert_same({**outcome(run), "logs": 0}, {**undisturbed("sgd")[0], "logs": 0})
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-6"]
    check_checkpoint(tmp_path / "checkpoint-6", run.fixed_configuration())


def test_the_best_model_is_the_best_that_could_be_saved(tmp_path, monkeypatch):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 4}
    run = new_run(tmp_path, callbacks=[FullDisk(12_000, step=2)], save_total_limit=1, **options)
    run.remove_callback(PrinterCallback)
    accuracies = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.1}  # the second cannot be saved
    monkeypatch.setattr(run, "evaluate", lambda **_: {"eval_mean_accuracy": accuracies[run.state.global_step]})
    after = {}

    class Remember(TrainerCallback):
        def on_step_end(self, _args, state, _control, **_):
            after[state.global_step] = small_run.trained_parameters(run)

    run.add_callback(Remember())
    run.train()
    assert (run.state.best_metric, run.state.best_global_step) == (0.5, 3)
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    assert_same(small_run.trained_parameters(run), after[3])
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}  # best and last


# ---- damaged checkpoints, and those of another configuration --------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, caplog):
    whole, folder = undisturbed("sgd")
    stopped_at(4, folder, tmp_path / "run")
    truncate(tmp_path / "run" / "checkpoint-4" / "optimizer.pt")
    reason = "optimizer.pt is not what was written"
    run = new_run(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"checkpoint-4 cannot be used: .*{reason}.*last valid one is .*point-3\."):
        run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    run.train(resume_from_checkpoint=True)
    assert f"{tmp_path / 'run' / 'checkpoint-4'} is passed over: its file {reason}" in caplog.text
    assert f"Going on from {tmp_path / 'run' / 'checkpoint-3'}." in caplog.text
    assert_same(outcome(run), whole)
    check_checkpoint(tmp_path / "run" / "checkpoint-4", run.fixed_configuration())


def test_a_checkpoint_of_another_configuration_is_refused_and_stays(tmp_path, undisturbed):
    stopped_at(2, undisturbed("sgd")[1], tmp_path / "run")
    run = new_run(tmp_path / "run", model=prompted.prompted_clip(torch.float32, num_shared_tokens=4))
    with pytest.raises(ValueError) as refused:
        run.train(resume_from_checkpoint=True)
    message = str(refused.value)
    assert f"`output_dir` {tmp_path / 'run'} holds no checkpoint to go on from (checkpoint-2: it was made" in message
    assert message.count("`num_shared_tokens` = 3, this run has 4") == 2
    explicit = tmp_path / "run" / "checkpoint-1"
    with pytest.raises(ValueError, match=r"point-1 cannot be used: it was made with.*run holds no valid one\."):
        run.train(resume_from_checkpoint=str(explicit))
    check_checkpoint(explicit, new_run(tmp_path / "run").fixed_configuration())


@pytest.mark.parametrize(
    ("options", "steps", "said"),
    [
        # Two epochs of four steps.
        ({"per_device_train_batch_size": 2}, 8, "goes on, but .*: `per_device_train_batch_size` .3, now 2. changed"),
        # Part of the optimizers' states: those of the checkpoint stay in force.
        ({"learning_rate": 0.02, "warmup_steps": 1}, 6, "keep the checkpoint's `learning_rate` 0.05 .not 0.02."),
        ({"scheduler_learning_rate": 0.5}, 6, "keep the checkpoint's `scheduler_learning_rate` 0.01 .not 0.5."),
        ({"max_steps": 3}, 4, "`max_steps` .-1, now 3. changed"),  # fewer than were taken: nothing moves
    ],
)
def test_changed_options_are_named_and_the_run_goes_on(tmp_path, undisturbed, caplog, options, steps, said):
    stopped_at(4, undisturbed("sgd")[1], tmp_path / "run")
    run = new_run(tmp_path / "run", **options)
    run.train(resume_from_checkpoint=True)
    assert re.search(said, caplog.text)
    assert ("The optimizers keep" in caplog.text) == ("learning_rate" in said)
    assert ("`warmup_steps` (2, now 1) changed" in caplog.text) == ("warmup_steps" in options)
    assert run.state.global_step == steps
    assert run.lr_scheduler.base_lrs == [0.05] * len(run.lr_scheduler.base_lrs)
    assert run.upper_level.optimizer.param_groups[0]["lr"] == 0.01


def test_nothing_to_go_on_from(tmp_path, undisturbed):
    with pytest.raises(ValueError, match=r"holds no checkpoint to go on from\. Leave it out to start anew"):
        new_run(tmp_path / "empty").train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"checkpoint-7 cannot be used: there is no such directory\. .*no valid one"):
        new_run(tmp_path / "empty").train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    stopped_at(2, undisturbed("sgd")[1], tmp_path / "run")
    truncate(tmp_path / "run" / "checkpoint-2" / "optimizer.pt")
    (tmp_path / "run" / "checkpoint-1" / DIGESTS).unlink()
    with pytest.raises(ValueError) as refused:
        new_run(tmp_path / "run").train(resume_from_checkpoint=True)
    assert "checkpoint-2: its file optimizer.pt is not what was written" in str(refused.value)
    assert f"checkpoint-1: it has no {DIGESTS}" in str(refused.value)
