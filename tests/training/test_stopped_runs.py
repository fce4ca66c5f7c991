"""Ctrl-C, evaluations and checkpoints together: what is announced as saved is there, and nothing else is lost."""

from __future__ import annotations

import os
import shutil
import signal
import types

import pytest
import small_run
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from jscpt_peft.evaluation import read_history
from jscpt_peft.training.callbacks import SIGNALS, StopOnInterrupt
from jscpt_peft.training.step_log import HISTORY_FILE

# Three steps an epoch.
COMMON = {"max_steps": 7, "per_device_train_batch_size": 3, "save_strategy": "epoch", "eval_strategy": "epoch"}
COMMON |= {"learn_scheduler": False}
BY_STEPS = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}


class PressCtrlC(TrainerCallback):
    """During a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, _args, state, _control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def new_run(folder, accuracies: dict[int, float], stop: int | None = None, callbacks=(), **options):
    """A run whose evaluation after a step has an accuracy that the test decides; `evaluated` are these steps."""
    press = [] if stop is None else [PressCtrlC(stop)]
    run = small_run.trainer(folder, callbacks=[*callbacks, *press], **{**COMMON, **options})
    run.evaluated = []

    def evaluate(self, **_):
        self.evaluated.append(self.state.global_step)
        metrics = {"eval_mean_accuracy": accuracies.get(self.state.global_step, 0.0)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    run.evaluate = types.MethodType(evaluate, run)
    if press:
        run.interrupt = StopOnInterrupt(run)
        run.add_callback(run.interrupt)
    return run


def checkpoints(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def assert_same_weights(one, other) -> None:
    ones, others = small_run.trained_parameters(one), small_run.trained_parameters(other)
    assert all(torch.equal(ones[name], others[name]) for name in ones)


@pytest.mark.parametrize("strategy", ["epoch", "best", "no"])
def test_an_interrupted_run_keeps_its_last_step_and_goes_on_from_it(tmp_path, strategy):
    """The best checkpoint is of step 3, only one is to be kept, and the accuracy would be best at the step itself."""
    accuracies = {3: 0.5, 4: 0.9, 6: 0.4, 7: 0.3}
    options = {"save_strategy": strategy, "save_steps": 3, "save_total_limit": 1}
    options["load_best_model_at_end"] = strategy == "epoch"
    whole, handlers = new_run(tmp_path / "whole", accuracies, **options), [signal.getsignal(each) for each in SIGNALS]
    whole.train()
    for stop in (4, 6):  # in the middle of an epoch, and at its end
        folder = tmp_path / str(stop)
        run = new_run(folder, accuracies, stop, **options)
        run.train()
        assert run.interrupt.interrupted and run.unsaved_error is None and run.args.save_strategy == strategy
        assert run.state.global_step == stop and [signal.getsignal(each) for each in SIGNALS] == handlers
        assert run.evaluated == [3, 6][: 1 + (stop == 6)]  # an epoch that is not over is not evaluated
        best = set() if strategy == "no" else {"checkpoint-3"}
        assert checkpoints(folder) == {f"checkpoint-{stop}"} | best
        resumed = new_run(folder, accuracies, **options)
        resumed.train(resume_from_checkpoint=True)
        assert run.evaluated + resumed.evaluated == whole.evaluated == [3, 6, 7]
        assert_same_weights(resumed, whole)
        for name in ("best_metric", "best_global_step"):
            assert getattr(resumed.state, name) == getattr(whole.state, name)


def test_early_stopping_is_as_patient_after_a_resume(tmp_path):
    accuracies = {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1}
    options = {**BY_STEPS, "load_best_model_at_end": True}
    whole = new_run(tmp_path / "whole", accuracies, callbacks=[EarlyStoppingCallback(3)], **options)
    whole.train()
    new_run(tmp_path / "run", accuracies, stop=3, callbacks=[EarlyStoppingCallback(3)], **options).train()
    resumed = new_run(tmp_path / "run", accuracies, callbacks=[EarlyStoppingCallback(3)], **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 4


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_watches_the_accuracy_knows_that_more_is_better(tmp_path, kind):
    rising = {step: step / 10 for step in range(1, 4)}
    rates = []
    for accuracies in (rising, {step: 1 - value for step, value in rising.items()}):
        run = new_run(
            tmp_path / str(len(rates)),
            accuracies,
            **{**BY_STEPS, "save_strategy": "no"},
            max_steps=3,
            lr_scheduler_type=kind,
            lr_scheduler_kwargs={"patience": 0},
        )
        run.train()
        rates.append(run.lr_scheduler.get_last_lr()[0])
    assert rates[0] >= 0.05 > rates[1]
    options = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": {"mode": "min"}}  # a mode that is given stays
    assert new_run(tmp_path, {}, **options).args.lr_scheduler_kwargs == {"mode": "min"}


def test_what_was_trained_after_a_step_that_one_goes_back_to_is_set_aside(tmp_path, caplog):
    """Else `True` would go on from the run that was given up."""
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    new_run(tmp_path, {}, max_steps=6, **options).train()
    other = {**options, "hypergradient_batch_size": 1}
    again = new_run(tmp_path, {}, stop=5, **other)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert checkpoints(tmp_path / "set_aside") == {"checkpoint-4", "checkpoint-6"}
    assert "The run is taken back to step 2: later checkpoints are now" in caplog.text
    assert checkpoints(tmp_path) == {"set_aside", "checkpoint-2", "checkpoint-4", "checkpoint-5"}
    last = new_run(tmp_path, {}, max_steps=8, **other)
    last.train(resume_from_checkpoint=True)
    assert f"Going on from {tmp_path / 'checkpoint-5'}." in caplog.text
    assert [row["step"] for row in read_history(tmp_path / HISTORY_FILE)] == list(range(1, 9))


def test_going_back_to_a_checkpoint_of_another_folder_or_name(tmp_path):
    """Another folder's sets nothing aside; of which step one is says its state, not its name."""
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "max_steps": 4}
    one, other = tmp_path / "one", tmp_path / "other"
    new_run(one, {}, **options).train()
    shutil.copytree(one, other)
    new_run(other, {}, **options).train(resume_from_checkpoint=str(one / "checkpoint-2"))
    assert checkpoints(one) == checkpoints(other) == {"checkpoint-2", "checkpoint-4"}
    (one / "checkpoint-2").rename(one / "checkpoint-2-good")
    new_run(one, {}, **options).train(resume_from_checkpoint=str(one / "checkpoint-2-good"))
    assert checkpoints(one) == {"checkpoint-2-good", "set_aside", "checkpoint-4"}


def test_the_best_step_is_one_that_was_saved(tmp_path):
    """A step in doubt is not, however good its evaluation."""
    options = {**BY_STEPS, "load_best_model_at_end": True, "max_steps": 4}
    run = new_run(tmp_path, {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.1}, **options)
    run.train_dataset = small_run.Spoiled(run.train_dataset, lambda draw: 3 <= draw < 6)  # the second step
    run.train()
    assert checkpoints(tmp_path) == {"checkpoint-1", "checkpoint-3", "checkpoint-4"}
    assert (run.state.best_metric, run.state.best_global_step) == (0.5, 3)
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-3") and run.loaded_step == 3
