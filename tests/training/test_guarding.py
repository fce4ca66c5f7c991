"""Faults in the middle of a run: the message names the cause, nothing hangs, nothing saved is lost."""

from __future__ import annotations

import math
import os
import re
import signal
import time
import traceback
from pathlib import Path

import prompted
import pytest
import small_run
import torch
from peft import get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from jscpt_peft.evaluation import read_history
from jscpt_peft.training.lost_processes import lost_processes_named
from jscpt_peft.training.task_sums import TaskSums

SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}


class Faulty(torch.utils.data.Dataset):
    """The pictures of a run; `fault` befalls whoever reads one in epoch 1 or later, or `of_all` of them."""

    def __init__(self, dataset, fault, of_all=False):
        self.dataset, self.fault, self.of_all = dataset, fault, of_all
        self.sizes, self.datasets = dataset.sizes, dataset.datasets

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        if self.of_all or key[1] >= 8:  # the draws of the first epoch are 0 to 7
            self.fault()
        return self.dataset[key]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def misread():
    raise OSError("image 'art/cat/7.png' cannot be read (truncated): repair it, or load with `skip_bad_images=True`.")


def faulty_run(folder, fault, of_all=False, workers=1):
    run = small_run.trainer(folder, max_steps=12, dataloader_num_workers=workers, **SAVING)
    run.train_dataset = Faulty(run.train_dataset, fault, of_all)
    return run


def failure(action) -> Exception:
    """The error of `action`; nothing that it was doing is left, such as loaders with their workers."""
    try:
        action()
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        return error.with_traceback(None)
    raise AssertionError("there is none")


def test_a_data_worker_that_dies(tmp_path):
    error = failure(faulty_run(tmp_path, die).train)
    assert isinstance(error, ChildProcessError)
    assert re.search(r"a data worker died or hangs \(DataLoader worker .*go on with", str(error))
    again = small_run.trainer(tmp_path, max_steps=6, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6


@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_a_data_worker_that_hangs(tmp_path, action, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # so long it gets for its end
    run = small_run.trainer(tmp_path, max_steps=12, dataloader_num_workers=1, dataloader_timeout=2, **SAVING)
    run.train_dataset, run.eval_dataset = Faulty(run.train_dataset, hang), Faulty(run.eval_dataset, hang, of_all=True)
    start = time.monotonic()
    error = failure(getattr(run, action))
    assert isinstance(error, ChildProcessError)
    assert re.search("timed out after 2 seconds.*`dataloader_timeout`", str(error))
    assert time.monotonic() - start < 60
    assert list(tmp_path.glob("checkpoint-*")) or action == "evaluate"


def mistake():
    raise RuntimeError("stack expects each tensor to be equal size")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_data_and_of_ones_own_code(tmp_path, workers):
    """In a worker as in the main process: one sentence on an image, not the worker's traceback."""
    error = failure(faulty_run(tmp_path / "image", misread, True, workers).train)
    assert isinstance(error, OSError)
    assert str(error).startswith("image 'art/cat/7.png' cannot be read (truncated): repair it")
    assert "Traceback" not in str(error) and "\n" not in str(error)
    error = failure(faulty_run(tmp_path / "code", mistake, True, workers).train)
    assert type(error) is RuntimeError and "stack expects each tensor to be equal size" in str(error)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="out of memory"), lost_processes_named(1):
        raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="NCCL error"), lost_processes_named(1):  # there is no other one
        raise RuntimeError("NCCL error")


class Explode(TrainerCallback):
    """After a step, the parameters are what an update far too large would leave: finite, and good for nothing."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, _args, state, _control, model=None, **_):
        if state.global_step == self.step:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.mul_(1e38).clamp_(-1e38, 1e38)


class Overflow(Explode):
    """After a step, the parameters are infinite."""

    def on_step_end(self, _args, state, _control, model=None, **_):
        if state.global_step == self.step:
            with torch.no_grad():
                next(parameter for parameter in model.parameters() if parameter.requires_grad).fill_(torch.inf)


REMEMBERING = {"prompts": "projected", "num_task_tokens": 0, "intervention": "decoupled", "num_confounders": 4}


def test_the_last_good_state_is_saved(tmp_path):
    """All tasks break at once: what is saved is the state before the update that broke them, not what it left."""
    options = {"max_steps": 5, "lower_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01}
    options |= {"save_strategy": "steps", "save_steps": 1}  # what is saved after that update must not be taken
    whole, broken, again = (prompted.prompted_clip(torch.float32, **REMEMBERING) for _ in range(3))
    whole = small_run.trainer(tmp_path / "whole", whole, **options)
    whole.train()
    run = small_run.trainer(tmp_path / "run", broken, callbacks=[Explode(3)], max_nonfinite_steps=2, **options)
    with pytest.raises(FloatingPointError, match="The last good state, of step 2, is saved in"):
        run.train()
    saved = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert saved == ["checkpoint-1", "checkpoint-2"]
    again = small_run.trainer(tmp_path / "run", again, **options)
    again.train(resume_from_checkpoint=True)
    expected, given = (each.model.task_adapter.state_dict() for each in (whole, again))
    for name, tensor in expected.items():
        assert torch.equal(tensor, given[name]), name
    assert torch.equal(whole.weighting.scheduler.alpha, again.weighting.scheduler.alpha)
    histories = [read_history(tmp_path / name / "scheduler_history.jsonl") for name in ("whole", "run")]
    assert histories[0] == histories[1]


def test_where_the_first_step_alone_was_good_the_start_is_saved(tmp_path):
    run = small_run.trainer(tmp_path, max_nonfinite_steps=2, learn_scheduler=False)
    run.train_dataset = small_run.Spoiled(run.train_dataset, lambda draw: draw >= 2)  # two images of each task a step
    start = small_run.trained_parameters(run)
    with pytest.raises(FloatingPointError, match=r"\['clipart'\] was not finite in 2 steps.*of step 0, is saved"):
        run.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-0"]
    assert all(torch.equal(start[name], value) for name, value in small_run.trained_parameters(run).items())


def test_a_run_that_ends_badly_is_no_success(tmp_path):
    """What is saved and what the model holds is the state before the step that went wrong, the third or the fourth."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "learn_scheduler": False}
    small_run.trainer(tmp_path / "whole", **options).train()
    losses = small_run.trainer(tmp_path / "losses", **options)
    losses.train_dataset = small_run.Spoiled(losses.train_dataset, lambda draw: draw >= 6)
    parameters = small_run.trainer(tmp_path / "parameters", callbacks=[Overflow(4)], **options)
    for run, reason, good in (
        (losses, "tasks were not finite in the last 1 steps", 2),
        (parameters, "parameters are", 3),
    ):
        message = rf"ends with step 4, but {reason}.*last good state, of step {good}"
        with pytest.raises(FloatingPointError, match=message):
            run.train()
        folder, held = Path(run.args.output_dir), get_peft_model_state_dict(run.model)
        saved = load_file(folder / f"checkpoint-{good}" / ADAPTER)
        for name, tensor in load_file(tmp_path / "whole" / f"checkpoint-{good}" / ADAPTER).items():
            assert torch.equal(tensor, saved[name]) and torch.equal(tensor, held[name]), name
        assert not (folder / "checkpoint-4").exists()


@pytest.mark.parametrize("what", ["images", "base", "adapter"])
def test_what_is_bad_from_the_start_is_named(tmp_path, what):
    """By training, where the learning rate is not to blame, by evaluation and by `predict`."""
    run = small_run.trainer(tmp_path, max_nonfinite_steps=1)
    model = run.model
    spoiled = {
        "base": model.get_base_model().visual_projection.weight,
        "adapter": model.task_adapter.prompts.vision_shared,
    }
    if what in spoiled:
        spoiled[what].detach().fill_(torch.nan)
    else:
        run.train_dataset = small_run.Spoiled(run.train_dataset)
    cause = {
        "base": "'visual_projection.*weight' of the base model is",
        "adapter": "'prompts.vision_shared' of the adapter",
    }
    found = cause.get(what, "images are not.* Look at them .*clipart")
    message = f"No step was good, so nothing is saved. So it was from the first step on: .*{found}"
    with pytest.raises(FloatingPointError, match=message) as caught:
        run.train()
    assert "learning_rate" not in str(caught.value)
    pixels = torch.full((2, 3, 32, 32), torch.nan if what == "images" else 0.0)
    of_pixels = cause.get(what, "`pixel_values` are not finite")
    with (
        pytest.raises(FloatingPointError, match=rf"logits of 2 of 2 images .* are not finite: {of_pixels}"),
        torch.no_grad(),
    ):
        model.classify(pixels, 0)
    if what in spoiled:
        with pytest.raises(FloatingPointError, match=f"logits of 1 of 1 images .*{cause[what]}"):
            model.predict(Image.new("RGB", (9, 9)), task=model.task_names[0])
        with pytest.raises(FloatingPointError, match=f"loss of an evaluation is NaN, .*{cause[what]}"):
            run.evaluate()


def test_a_step_without_a_usable_task_moves_nothing(tmp_path):
    """Neither do momentum, weight decay or Ω; no callback sees an update that is taken back; the steps are counted."""

    class Remember(TrainerCallback):
        def on_optimizer_step(self, *_, **__):
            states.append([parameter.detach().clone() for parameter in run.trainable_parameters()])

    states = []
    options = {"max_steps": 4, "lower_steps": 3, "weight_decay": 0.1}
    run = small_run.trainer(tmp_path, callbacks=[Remember()], **options)
    # The second and third batch of two images per task.
    run.train_dataset = small_run.Spoiled(run.train_dataset, lambda draw: 2 <= draw < 6, task=None)
    run.train()
    for first, second, third in zip(*states[:3], strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)
    assert any(not torch.equal(before, after) for before, after in zip(states[2], states[3], strict=True))
    assert run.upper_level.updates == 0 and run.weighting.scheduler.alpha.eq(1).all()
    rows = read_history(tmp_path / "scheduler_history.jsonl")
    assert [row["nonfinite"] for row in rows] == [[False] * 3, [True] * 3, [True] * 3, [False] * 3]
    last = [entry for entry in run.state.log_history if "loss/photo" in entry][-1]
    assert last["nonfinite_steps/photo"] == last["nonfinite_steps/sketch"] == 2


def test_a_first_step_that_is_not_finite_spoils_no_logged_loss(tmp_path):
    run = small_run.trainer(tmp_path, max_steps=4, logging_steps=2)
    run.train_dataset = small_run.Spoiled(run.train_dataset, lambda draw: draw < 2, task=None)
    run.train()
    assert all(
        math.isfinite(row[name]) for row in run.state.log_history for name in ("loss", "train_loss") if name in row
    )


def test_no_epoch_is_evaluated_whose_last_steps_were_too_bad(tmp_path):
    """A checkpoint of the state before must not tell of a better metric of the state after."""
    options = {"num_train_epochs": 3, "max_nonfinite_steps": 2, "logging_steps": 100, "lower_steps": 100}
    run = small_run.trainer(tmp_path, max_steps=-1, eval_strategy="epoch", save_strategy="epoch", **options)
    sampler = run.get_train_dataloader().batch_sampler
    steps = len(sampler)
    bad = {draw for number in (steps - 2, steps - 1) for _, draw in sampler.batch(number, epoch=1)}
    run.train_dataset = small_run.Spoiled(run.train_dataset, bad.__contains__, None)
    with pytest.raises(FloatingPointError, match=f"The last good state, of step {2 * steps - 3}, is saved"):
        run.train()
    assert [row["step"] for row in run.state.log_history if "eval_loss" in row] == [steps]


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_fused"])
def test_a_step_is_undone_whenever_it_is_known(tmp_path, optim):
    """At its end (it is logged) or a step later: parameters and momentum are the same, bit for bit."""
    states = []
    for logging_steps in (1, 100):
        options = {"optim": optim, "max_steps": 4, "weight_decay": 0.1, "logging_steps": logging_steps}
        run = small_run.trainer(tmp_path / str(logging_steps), task_prior=0.1, **options)
        run.train_dataset = small_run.Spoiled(run.train_dataset, lambda draw: draw // 2 in (0, 2), task=None)
        run.train()
        moments = run.optimizer.state_dict()["state"]
        states.append((small_run.trained_parameters(run), moments, run.weighting.state_dict()))
        assert all(each.get("step", 2) == 2 for each in moments.values())
    torch.testing.assert_close(*states, atol=0, rtol=0)


def test_a_gradient_that_is_not_finite_counts_like_a_loss():
    gradients = {"x": torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [torch.inf, 1.0]])}
    counts, losses = torch.tensor([1, 1, 1]), torch.ones(3)
    means = TaskSums(counts, losses, losses, gradients).means()
    assert means.usable.tolist() == [True, False, False] and means.nonfinite.tolist() == [False, True, True]
    assert means.gradients["x"].tolist() == [[1, 2], [0, 0], [0, 0]]
