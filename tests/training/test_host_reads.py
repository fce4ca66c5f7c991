"""A lower step that is not logged never waits for the device: neither the step itself nor `Trainer` around it."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module

import prompted
import pytest
import small_run
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from jscpt_peft.training import guarding
from jscpt_peft.training.host_copy import HostCopy
from jscpt_peft.training.task_gradients import Batch

# Python's ways to a tensor's values, and from values to a tensor: a GPU is waited for in either direction.
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")
MAKES = ("tensor", "as_tensor", "new_tensor", "from_numpy")
# Operations that look at values inside torch.
LOOKS = ("_local_scalar_dense", "_unique2", "unique_consecutive", "nonzero", "bincount", "masked_select")
LOOKS += ("is_nonzero", "equal", "repeat_interleave")
BY_INDEX = ("index", "index_put", "index_put_", "_index_put_impl_")  # look where an index is a mask


class Read(AssertionError):
    """Not an error that anything here catches."""


def is_cpu(argument) -> bool:
    """By name: the `torch.device` of another tensor is a CPU in these tests, and is not on a GPU."""
    return isinstance(argument, str) and argument.partition(":")[0] == "cpu"


class NoPythonReads(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        to_host = name == "to" and any(is_cpu(each) for each in (*args[1:], kwargs.get("device")))
        if name in READS + MAKES or (to_host and not kwargs.get("non_blocking")):
            raise Read(name)
        return function(*args, **kwargs)


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        masks = [each for each in args[1] if each is not None and each.dtype == torch.bool] if name in BY_INDEX else []
        if name in LOOKS or masks:
            raise Read(function._schema.name)
        return function(*args, **(kwargs or {}))


class Watch(TrainerCallback):
    """From the beginning to the end of steps that are not logged nothing may be read."""

    def __init__(self, first: int, logging_steps: int) -> None:
        self.first, self.logging_steps = first, logging_steps
        self.watched, self.open = [], None

    def on_step_begin(self, _args, state, _control, **_):
        step = state.global_step + 1
        if step >= self.first and step % self.logging_steps:
            self.open = ExitStack()
            self.open.enter_context(NoPythonReads())
            self.open.enter_context(NoReads())
            self.watched.append(step)

    def on_step_end(self, *_, **__):
        self.close()

    def close(self):
        if self.open is not None:
            self.open.close()
        self.open = None


def on_the_host(function):
    """Allowed: batches and Adam's step counters are there, and so is what a `HostCopy` was sent a step earlier."""

    def allowed(*args, **kwargs):
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            return function(*args, **kwargs)

    return allowed


def watched_run(tmp_path, monkeypatch, **options):
    monkeypatch.setattr(Batch, "checked", on_the_host(Batch.checked))
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_value", on_the_host(adam._get_value))  # of step counters
    options = {"max_steps": 5, "logging_steps": 3, "lower_steps": 100, **options}
    run = small_run.trainer(tmp_path, prompted.prompted_clip(torch.float32), **options)
    watch = Watch(2, run.args.logging_steps)  # the first step fills what is kept
    run.add_callback(watch)

    class OfAnEarlierStep(HostCopy):
        def __init__(self, tensor):
            on_the_host(super().__init__)(tensor)
            self.step = run.state.global_step

        def tolist(self):
            assert watch.open is None or self.step < run.state.global_step
            return on_the_host(super().tolist)()

    monkeypatch.setattr(guarding, "HostCopy", OfAnEarlierStep)
    try:
        run.train()
    finally:
        watch.close()
    return watch.watched


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optim": "adamw_torch", "max_grad_norm": 1.0, "weight_decay": 0.1},
        {"optim": "adamw_torch_fused", "lr_scheduler_type": "linear"},
        {"bf16": True},
        {"gradient_accumulation_steps": 2, "max_steps": 4},
        {"weigh_own_steps": True, "task_prior": 0.1},
        *({"weighting": each, "max_steps": 3} for each in ("uniform", "loss_cosine", "uw", "gradnorm", "dwa", "famo")),
    ],
    ids=str,
)
def test_a_step_that_is_not_logged_reads_nothing(tmp_path, monkeypatch, options):
    steps = watched_run(tmp_path, monkeypatch, **options)
    assert steps == [2, 4, 5][: options.get("max_steps", 5) - 2]


@pytest.mark.parametrize("options", [{"lower_steps": 1}, {"logging_nan_inf_filter": True}], ids=str)
def test_an_update_of_omega_and_the_filter_of_trainer_do(tmp_path, monkeypatch, options):
    with pytest.raises(Read):
        watched_run(tmp_path, monkeypatch, **options)


READING = (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.tensor, torch.as_tensor, bool, int, float)


@pytest.mark.parametrize(
    "read",
    [
        *READING,
        lambda one: one.to("cpu"),
        lambda one: one.to(device="cpu"),
        lambda one: one.new_tensor([1.0]),
        lambda one: one[one > 0],
        lambda one: one.masked_select(one > 0),
        lambda one: one.view(1)[one.view(1) > 0],
        lambda one: one.view(1).__setitem__(one.view(1) > 0, 2.0),
        lambda one: one.view(1).index_put_((one.view(1) > 0,), one),
        lambda one: one.view(1).repeat_interleave(one.view(1).long()),
        lambda one: one.view(1).unique_consecutive(),
        lambda one: one.view(1).unique(),
    ],
)
def test_every_way_to_read_is_seen(read):
    with pytest.raises(Read), NoPythonReads(), NoReads():
        read(torch.ones(()))
