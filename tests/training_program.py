"""A training run of `small_run` in one process of several, with the faults that tests ask for."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prompted
import small_run
import torch
from transformers import TrainerCallback

from jscpt_peft.training.callbacks import StopOnInterrupt
from jscpt_peft.training.distributed import process_index

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier")
COLLECTIVES += ("broadcast_object_list", "reduce", "reduce_scatter", "gather", "scatter", "all_to_all", "send", "recv")


class Communications:
    """Counts what the processes tell each other from one step's end to the next one's."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.open = 0
        for name in COLLECTIVES:
            setattr(torch.distributed, name, self._counted(getattr(torch.distributed, name)))

    def _counted(self, original: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.open += 1
            return original(*args, **kwargs)

        return counted


class AtStep(TrainerCallback):
    """What happens when a step begins: the fault of the options, in one process; and the count of communications."""

    def __init__(self, communications: Communications, fault: str | None, step: int, rank: int) -> None:
        self.communications, self.fault, self.step, self.rank = communications, fault, step, rank

    def on_step_begin(self, _args, state, _control, **_):
        if not self.communications.calls:  # what begins a run belongs to no step
            self.communications.open = 0
        if state.global_step == self.step and process_index() == self.rank:
            if self.fault in ("SIGKILL", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, self.fault))
            elif self.fault == "slow":
                time.sleep(600)
            elif self.fault == "infinite images":
                self.break_images()
            elif self.fault == "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    def break_images(self) -> None:
        step = self.trainer.training_step

        def broken(model: torch.nn.Module, inputs: dict[str, torch.Tensor], *others: object) -> torch.Tensor:
            here = (inputs["task_ids"] == 1).view(-1, 1, 1, 1)
            broken_images = inputs["pixel_values"].masked_fill(here, torch.inf)
            return step(model, {**inputs, "pixel_values": broken_images}, *others)

        self.trainer.training_step = broken

    def on_step_end(self, _args, _state, _control, **_):
        self.communications.calls.append(self.communications.open)
        self.communications.open = 0


def main(
    folder: str,
    sizes: dict[str, list[int]] | None = None,
    resume: Any = None,
    fault: str | None = None,
    step: int = -1,
    rank: int = 0,
    dtype: str = "float64",
    model: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Trains, evaluates and writes `folder/<rank>.pt`.

    Args:
        folder: for the results; `folder/run` is the run's own.
        sizes: numbers of images, as in `small_run.trainer`.
        resume: `resume_from_checkpoint`.
        fault, step, rank: what befalls which process when which step begins.
        dtype: of the model.
        model: options of `prompted.prompted_clip`.
        options: of `JSCPTTrainingArguments`.
    """
    communications = Communications()
    if fault == "fewer images" and int(os.environ["RANK"]) == rank:
        sizes = {"train": [7, 5, 6]}
    at_step = AtStep(communications, fault, step, rank)
    trainer = small_run.trainer(
        Path(folder, "run"),
        prompted.prompted_clip(getattr(torch, dtype), **(model or {})),
        callbacks=[at_step],
        sizes=sizes,
        **options,
    )
    at_step.trainer = trainer
    stop = StopOnInterrupt(trainer)
    trainer.add_callback(stop)
    trainer.train(resume_from_checkpoint=resume)
    prediction = trainer.predict(trainer.eval_dataset)
    scheduler = trainer.weighting.scheduler
    result = {
        "parameters": trainer.model.task_adapter.state_dict(),  # with what a head remembers
        "omega": {name: getattr(scheduler, name).detach() for name in ("alpha", "beta")},
        "updates": trainer.upper_level.updates,
        "steps": trainer.state.global_step,
        "interrupted": stop.interrupted,
        "communications": communications.calls,
        "metrics": {name: value for name, value in prediction.metrics.items() if "accuracy" in name or "loss" in name},
        "predictions": torch.tensor(prediction.predictions),
        "labels": torch.tensor(prediction.label_ids[0]),
        "optimizer": trainer.optimizer.state_dict()["state"],
    }
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    torch.save(result, Path(folder, f"{process_index()}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    for options in given if isinstance(given, list) else [given]:
        main(**options)
