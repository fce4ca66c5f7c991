"""Bytes of tensors that a lower step holds at its peak, without computing it: of sizes that would take hours, too."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from benchmark_steps import lower_step, random_batch, random_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jscpt_peft.model import task_rows
from jscpt_peft.scheduling import JointScheduling, TaskPromptScheduler


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that are made within and not yet freed.

    Attributes:
        peak: the most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                weakref.finalize(storage, self._freed, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def step_bytes(arguments: Any) -> int:
    """Of the model, the batch and a full lower step."""
    model = random_model(arguments)
    batch, parts = random_batch(model, arguments, 0), model.base_model.class_features
    for tasks in (tuple(range(arguments.tasks)), *((task,) for task in range(arguments.tasks))):
        parts.of_tasks(tasks)  # which looks at values, and is kept
    weighting = JointScheduling(TaskPromptScheduler(arguments.tasks)).to(arguments.device)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
            lower_step(model, weighting, [batch], arguments.dtype)
    finally:
        task_rows._on_device.cache_clear()  # of tensors without values
    return live.peak + sum(each.nbytes for each in (*model.parameters(), batch.pixel_values))


def memory(arguments: Any, _measured: Any) -> list[dict[str, Any]]:
    """With and without activation checkpointing; Python, torch and what the allocator keeps come on top."""
    sizes = {name: getattr(arguments, name) for name in ("tasks", "classes", "images")}
    names = {"tensors GB": False, "with activation checkpointing": True}
    figures = {name: step_bytes(replace(arguments, activation_checkpointing=on)) / 1e9 for name, on in names.items()}
    return [sizes | figures]
