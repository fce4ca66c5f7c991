"""A run that was stopped and goes on is, bit for bit, the one that never stopped; no fault costs more than a save."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import fork_server
import killed_program
import numpy as np
import prompted
import pytest
import small_run
import torch
from full_disk import no_file_larger_than
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback

from jscpt_peft.evaluation import read_history
from jscpt_peft.training.checkpoint import DIGESTS, check_checkpoint, last_valid_checkpoint
from jscpt_peft.training.step_log import HISTORY_FILE

# What a kill leaves of the history's last line is left out, with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*breaks off and is left out", "ignore:.*is_gradient_checkpointing")

# Three steps an epoch, so that 7 steps end in the middle of the third one.
COMMON = {"max_steps": 7, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 1}
VARIANTS = {
    "sgd": {"warmup_steps": 2, "num_train_epochs": 3, "max_steps": -1},
    "adamw, Ω by sgd": {"optim": "adamw_torch", "learning_rate": 0.01, "scheduler_optimizer": "sgd"},
    "accumulation": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
    "no Hessian": {"neumann_terms": 0, "lower_steps": 1, "weight_decay": 0.1},
    "auto": {"lower_steps": "auto", "scheduler_learning_rate": "auto", "weigh_own_steps": True, "task_prior": 1.0},
    "gradvac": {"gradient_aggregator": "gradvac"},
    "vision": {"max_steps": 5},  # class features are kept between steps
    "data workers": {"dataloader_num_workers": 1, "max_steps": 6},
    # The schedule looks at the evaluation that follows an epoch's last step, which is saved as every step is.
    "plateau": {"eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "lower_steps": 3},
}
STEPS = {name: {"data workers": 6, "sgd": 9, "vision": 5}.get(name, 7) for name in VARIANTS}


def new_run(folder, variant="sgd", model=None, **options):
    if variant == "vision":
        model = prompted.prompted_clip(torch.float32, towers="vision")
    return small_run.trainer(folder, model, **{**COMMON, **VARIANTS[variant], **options})


def outcome(run) -> dict:
    """All that a run has come to."""
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
        "schedule": run.lr_scheduler.state_dict(),
        "step": (run.state.global_step, run.state.epoch),
        "best": (run.state.best_metric, run.state.best_global_step),
        "logs": measured,
        "history": read_history(Path(run.args.output_dir, HISTORY_FILE)),
    }


def assert_same(one, other, where="run") -> None:
    """Bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}: {name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}: {number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(variant)`: the outcome of a run that never stopped, and its folder with a checkpoint a step."""
    root = tmp_path_factory.mktemp("undisturbed")

    @cache
    def result(variant: str) -> tuple[dict, Path]:
        folder = root / str(list(VARIANTS).index(variant))
        run = new_run(folder, variant)
        run.train()
        assert run.state.global_step == STEPS[variant]
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


def steps_of(variant: str) -> list[int]:
    """In the middle of an epoch, at its end, before and after an update of Ω, and after the last."""
    if variant == "sgd":
        return [1, 2, 3, 5, 9]
    return {"plateau": [3, 7], "evaluation": [2, 7], "data workers": [2, 3]}.get(variant, [2])


@pytest.mark.parametrize(("variant", "step"), [(variant, step) for variant in VARIANTS for step in steps_of(variant)])
def test_a_run_stopped_at_any_step_is_the_one_that_never_stopped(tmp_path, undisturbed, variant, step):
    whole, folder = undisturbed(variant)
    if step == STEPS[variant]:
        shutil.copytree(folder, tmp_path / "run")
    else:
        stopped_at(step, folder, tmp_path / "run")
    run = new_run(tmp_path / "run", variant)
    run.train(resume_from_checkpoint=True)
    assert_same(outcome(run), whole)
    assert whole["upper level"]["updates"] >= 2
    if step < STEPS[variant]:
        assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == sorted(
            f"checkpoint-{number}" for number in range(1, STEPS[variant] + 1)
        )


def test_saving_disturbs_nothing(tmp_path, undisturbed):
    run = new_run(tmp_path, save_strategy="no")
    run.train()
    assert_same(outcome(run), undisturbed("sgd")[0])


class Noise(TrainerCallback):
    """As dropout would: makes every step depend on the state of all random number generators."""

    def on_pre_optimizer_step(self, *_, model, **__):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad += 0.01 * (torch.randn_like(parameter.grad) + random.random() + np.random.rand())


def test_random_numbers_go_on_where_they_were(tmp_path):
    whole = new_run(tmp_path / "whole", callbacks=[Noise()])
    whole.train()
    drawn = torch.rand(3), np.random.rand(), random.random()
    for step in (1, 3):  # in the middle of an epoch, and at its end
        folder = stopped_at(step, tmp_path / "whole", tmp_path / str(step))
        torch.manual_seed(99)
        resumed = new_run(folder, callbacks=[Noise()])
        resumed.train(resume_from_checkpoint=True)
        assert_same(outcome(resumed), outcome(whole))
        assert_same((torch.rand(3), np.random.rand(), random.random()), drawn)


def test_the_checkpoint_holds_everything(tmp_path):
    """Adapter, Ω, both optimizers, schedules, random numbers, sampler epoch and update count, as they are then."""
    seen = {}

    class Look(TrainerCallback):
        def on_step_end(self, _args, state, _control, model, optimizer, lr_scheduler, **_):
            if state.global_step == 5:
                seen["adapter"] = {n: p.clone() for n, p in get_peft_model_state_dict(model).items()}
                seen["optimizer"] = json.dumps(optimizer.state_dict(), default=torch.Tensor.tolist)
                seen["schedule"] = lr_scheduler.state_dict()
                seen["upper"] = json.dumps(run.upper_level.state_dict(), default=torch.Tensor.tolist)
                seen["random"] = torch.get_rng_state(), np.random.get_state()[1], random.getstate()

    run = new_run(tmp_path, callbacks=[Look()])
    run.train()
    folder = tmp_path / "checkpoint-5"
    assert_same(load_file(folder / "adapter_model.safetensors"), seen["adapter"])
    upper = torch.load(folder / "task_scheduler.pt", weights_only=True)
    assert upper.pop("nonfinite_steps") == 0
    assert upper["updates"] == 2 and upper["optimizer"]["state"][0]["step"] == 2
    assert json.dumps(upper, default=torch.Tensor.tolist) == seen["upper"]
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    assert json.dumps(optimizer, default=torch.Tensor.tolist) == seen["optimizer"]
    assert all("momentum_buffer" in each for each in optimizer["state"].values())
    assert_same(torch.load(folder / "scheduler.pt", weights_only=True), seen["schedule"])
    numbers = torch.load(folder / "rng_state.pth", weights_only=False)
    assert torch.equal(numbers["cpu"], seen["random"][0])
    assert (numbers["numpy"][1] == seen["random"][1]).all() and numbers["python"] == seen["random"][2]
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 5 and state["epoch"] == pytest.approx(5 / 3)
    files = {path.name for path in folder.iterdir()}
    assert json.loads((folder / DIGESTS).read_text())["files"].keys() == files - {DIGESTS}


def test_steps_that_were_not_finite_are_counted_on(tmp_path):
    def run():
        made = new_run(tmp_path, max_nonfinite_steps=3)
        made.train_dataset = small_run.Spoiled(made.train_dataset, lambda draw: draw >= 9)  # from the fourth step on
        return made

    whole = run()
    with pytest.raises(FloatingPointError, match="in 3 steps in a row") as stop:
        whole.train()
    # Steps in a row are not saved: what is saved last is the state before the first of them.
    newest = max(int(path.name.removeprefix("checkpoint-")) for path in tmp_path.glob("checkpoint-*"))
    assert f"of step {newest}, is saved" in str(stop.value)
    state = torch.load(tmp_path / f"checkpoint-{newest}" / "task_scheduler.pt", weights_only=True)
    assert state["nonfinite_steps"] == 0
    resumed = run()
    with pytest.raises(FloatingPointError, match="in 3 steps in a row"):
        resumed.train(resume_from_checkpoint=True)
    steps = [row["step"] for row in read_history(tmp_path / HISTORY_FILE)]
    assert steps == list(range(1, newest + 5))  # that of the step which ends it too


# ---- killed while saving --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    """What `killed_program` leaves and prints."""
    root = tmp_path_factory.mktemp("killed")
    options = json.dumps({**COMMON, **VARIANTS["sgd"], "save_steps": 2, "save_total_limit": 1})
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
    named = kill in ("after the name", "deletion")
    assert printed["left"][number] == ["checkpoint-2", "checkpoint-4"][: 1 + named]
    last = "checkpoint-4" if named or kill == "before the name" else "checkpoint-2"  # it lacked nothing but its name
    assert f"Going on from {root / str(number) / last}." in (root / f"{number}.log").read_text()
    resumed, whole = (torch.load(root / f"{name}.pt", weights_only=True) for name in (number, "whole"))
    assert_same(resumed, whole)
    assert [path.name for path in (root / str(number)).iterdir() if path.is_dir()] == ["checkpoint-9"]


# ---- a full disk ----------------------------------------------------------------------------------------------------


class FullDisk(TrainerCallback):
    """From the end of step `first` to the beginning of the one after `last`."""

    def __init__(self, limit, first=4, last=4):
        self.first, self.last, self.full = first, last, no_file_larger_than(limit)

    def on_step_end(self, _args, state, _control, **_):
        if state.global_step == self.first:
            self.full.__enter__()

    def on_step_begin(self, _args, state, _control, **_):
        if state.global_step == self.last:
            self.full.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("limit", "error"),
    [(12_000, "OSError"), (14_000, "RuntimeError"), (2_500, "OSError")],
    ids=["adapter", "optimizer", "history"],
)
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
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-9"]
    check_checkpoint(tmp_path / "checkpoint-9", run.fixed_configuration())


def test_the_best_model_is_the_best_that_could_be_saved(tmp_path, monkeypatch):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 4}
    run = new_run(tmp_path, callbacks=[FullDisk(12_000, first=2, last=2)], save_total_limit=1, **options)
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


DAMAGES = {
    "optimizer.pt is not what was written": ("optimizer.pt", truncate),
    "rng_state.pth is missing": ("rng_state.pth", Path.unlink),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, caplog, reason):
    whole, folder = undisturbed("sgd")
    stopped_at(4, folder, tmp_path / "run")
    name, damage = DAMAGES[reason]
    damage(tmp_path / "run" / "checkpoint-4" / name)
    run = new_run(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"checkpoint-4 cannot be used: .*{reason}.*last valid one is .*point-3\."):
        run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    run.train(resume_from_checkpoint=True)
    passed_over = next(record.message for record in caplog.records if "is passed over" in record.message)
    assert passed_over.startswith(str(tmp_path / "run" / "checkpoint-4"))
    assert re.search(reason, passed_over)
    assert f"Going on from {tmp_path / 'run' / 'checkpoint-3'}." in caplog.text
    assert_same(outcome(run), whole)
    check_checkpoint(tmp_path / "run" / "checkpoint-4", run.fixed_configuration())


@pytest.mark.parametrize(
    ("adapter", "options", "reason"),
    [
        ({"num_shared_tokens": 4}, {}, "`num_shared_tokens` = 3, this run has 4"),
        ({}, {"gradient_aggregator": "gradvac"}, '`gradient_aggregator` = null, this run has "gradvac"'),
    ],
    ids=["prompts", "aggregator"],
)
def test_a_checkpoint_of_another_configuration_is_refused_and_stays(tmp_path, undisturbed, adapter, options, reason):
    stopped_at(2, undisturbed("sgd")[1], tmp_path / "run")
    run = new_run(tmp_path / "run", model=prompted.prompted_clip(torch.float32, **adapter), **options)
    with pytest.raises(ValueError) as refused:
        run.train(resume_from_checkpoint=True)
    message = str(refused.value)
    assert f"`output_dir` {tmp_path / 'run'} holds no checkpoint to go on from (checkpoint-2: it was made" in message
    assert message.count(reason) == 2
    explicit = tmp_path / "run" / "checkpoint-1"
    with pytest.raises(ValueError, match=r"point-1 cannot be used: it was made with.*run holds no valid one\."):
        run.train(resume_from_checkpoint=str(explicit))
    check_checkpoint(explicit, new_run(tmp_path / "run").fixed_configuration())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"per_device_train_batch_size": 2}, "`per_device_train_batch_size` (3, now 2) changed."),
        # Part of the optimizers' states: those of the checkpoint stay in force.
        ({"learning_rate": 0.02}, "The optimizers keep the checkpoint's `learning_rate` 0.05 (not 0.02)."),
        ({"scheduler_learning_rate": 0.5}, "checkpoint's `scheduler_learning_rate` 0.01 (not 0.5)."),
        ({"warmup_steps": 1}, "not as it would have without a stop: `warmup_steps` (2, now 1) changed."),
        ({"max_steps": 3}, "`max_steps` (-1, now 3) changed"),
    ],
)
def test_changed_options_are_named_and_the_run_goes_on(tmp_path, undisturbed, caplog, options, said):
    stopped_at(4, undisturbed("sgd")[1], tmp_path / "run")
    run = new_run(tmp_path / "run", **options)
    run.train(resume_from_checkpoint=True)
    assert said in caplog.text if said else "The run goes on, but" not in caplog.text
    assert ("The optimizers keep" in caplog.text) == ("learning_rate" in str(said))
    # Three epochs of three steps, or of four; fewer steps than were taken move nothing.
    assert run.state.global_step == {2: 12}.get(
        run.args.per_device_train_batch_size, 4 if "max_steps" in options else 9
    )
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
