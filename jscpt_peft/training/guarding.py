"""Steps in which a task is not finite: without weight, counted, and gone back from where they do not end."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from jscpt_peft.model import JSCPTModel
from jscpt_peft.model.adapter_file import LARGEST, unsound
from jscpt_peft.model.causes import cause_of_nan
from jscpt_peft.scheduling import Weighting

from . import checkpoint as files
from .arguments import JSCPTTrainingArguments
from .bilevel import UpperLevel
from .distributed import by_first_process
from .host_copy import HostCopy
from .task_sums import TaskMeans

logger = logging.get_logger(__name__)


class Snapshot:
    """A copy in memory of parameters, and of others that have `state_dict` and `load_state_dict`, to go back to."""

    def __init__(self, parameters: Sequence[Tensor], others: Sequence[Any]) -> None:
        self._parameters = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._others = [(other, copy.deepcopy(other.state_dict())) for other in others]

    def restore(self) -> None:
        """Puts everything back as it was."""
        self.restore_parameters()
        for other, state in self._others:
            other.load_state_dict(copy.deepcopy(state))

    @torch.no_grad()
    def restore_parameters(self, unless: Tensor | None = None) -> None:
        """Puts the parameters back as they were, `unless` a bool `[]` says no, which stays on its device."""
        for parameter, value in self._parameters:
            parameter.copy_(value if unless is None else torch.where(unless, parameter, value))

    def restore_moments(self, optimizer: Any) -> None:
        """Puts back what one of the others, an optimizer, holds of every parameter; learning rates stay."""
        state = next(state for other, state in self._others if other is optimizer)
        optimizer.load_state_dict({**copy.deepcopy(state), "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class GuardedStep:
    """A step, and what was there before its update.

    Attributes:
        number: from 1.
        epoch: before it.
        before: the state before its update.
        moves: bool `[]`, whether any task is usable.
        flags: `[2 N + 1]`: tasks that are usable, tasks that are not finite, whether a process asks to stop.
    """

    number: int
    epoch: float
    before: Snapshot
    moves: Tensor
    flags: HostCopy


class Guarding(Trainer):
    """Lets no step that is not finite pass, and waits for no device to see it.

    What such a step must not do is decided on the device: the task has no weight, and without a usable task nothing
    moves. The host learns of it a step later, or before it logs, evaluates or saves.

    Attributes:
        nonfinite_steps: steps in a row, as far as they are read, in which a task's loss or gradient was not finite.
    """

    args: JSCPTTrainingArguments
    task_names: list[str]
    upper_level: UpperLevel
    weighting: Weighting
    unsaved_error: str | None
    stop_asked: bool
    stop_agreed: bool
    nonfinite_steps = 0
    _unread: GuardedStep | None = None
    _good: GuardedStep | None = None  # the last one of finite losses

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """θ."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def guard(self, step: TaskMeans, stop: Tensor) -> None:
        """Remembers a step before its update; bool `[1]` tells whether a process asks to stop, read by several."""
        self.settle()
        # Finite losses show that the parameters are good: the update that follows may spoil them.
        head = self.model.task_adapter.head
        others = [self.optimizer, self.lr_scheduler, self.upper_level]
        others += [head] if head is not None and head.observes else []
        before = Snapshot(self.trainable_parameters(), others)
        flags = HostCopy(torch.cat([step.usable, step.nonfinite, stop]))
        number, epoch = self.state.global_step + 1, self.state.epoch or 0.0
        self._unread = GuardedStep(number, epoch, before, step.usable.any(), flags)

    def undo_unless_moved(self) -> None:
        """Takes an update back in which no task is usable: neither momentum nor weight decay moves anything."""
        self._unread.before.restore_parameters(unless=self._unread.moves)

    def settle(self) -> None:
        """Learns of the last step: counts those in a row in which a task is not finite; too many stop the run.

        Raises:
            FloatingPointError: they are `max_nonfinite_steps`. The last good state is saved.
        """
        step, self._unread = self._unread, None
        if step is None:
            return
        *flags, stop = step.flags.tolist()
        usable, nonfinite = flags[: len(self.task_names)], flags[len(self.task_names) :]
        self.stop_agreed = self.stop_agreed or stop
        if not any(usable):
            step.before.restore_moments(self.optimizer)
        if not any(nonfinite):
            self.nonfinite_steps, self._good = 0, step
            return
        self.nonfinite_steps += 1
        tasks = [name for name, wrong in zip(self.task_names, nonfinite, strict=True) if wrong]
        logger.warning(
            f"Step {step.number}: loss or gradient of {tasks} is not finite; weight 0 in this step "
            f"({self.nonfinite_steps} in a row)."
        )
        if self.nonfinite_steps >= self.args.max_nonfinite_steps:
            remedy = remedy_of(self.model.base_model, self._good is None, tasks)
            raise FloatingPointError(
                f"The loss of {tasks} was not finite in {self.nonfinite_steps} steps in a row "
                f"(`max_nonfinite_steps`). {self.save_last_good_state()} {remedy}"
            )

    def spoiled(self) -> str | None:
        """What is wrong with the state after the last step, if anything."""
        self.settle()
        if self.nonfinite_steps:
            return f"tasks were not finite in the last {self.nonfinite_steps} steps"
        return problem_of([*self.model.task_adapter.state_dict().values(), *self.weighting.parameters()])

    def check_end(self) -> None:
        """Raises a `FloatingPointError` where a run ends in a state that is no result; the last good one is kept."""
        reason = self.spoiled()
        if reason is not None:
            step, remedy = self.state.global_step, remedy_of(self.model.base_model, self._good is None)
            raise FloatingPointError(
                f"The run ends with step {step}, but {reason}. {self.save_last_good_state()} {remedy}"
            )

    def save_last_good_state(self) -> str:
        """Goes back to before the first of the steps in a row and saves that; says what is saved where."""
        self._unread = None
        if self._good is None:
            return "No step was good, so nothing is saved."
        self.state.global_step, self.state.epoch = self._good.number - 1, self._good.epoch
        self._good.before.restore()
        self.nonfinite_steps = 0
        # What was saved after the update that broke the run must not be what it goes on from.
        run = Path(self._get_output_dir(self._trial))
        by_first_process(lambda: files.set_aside_after(run, self.state.global_step))
        self._save_checkpoint(self.model, self._trial)
        if self.unsaved_error is not None:
            return f"The last good state, of step {self.state.global_step}, could not be saved."
        return f"The last good state, of step {self.state.global_step}, is saved in {run}."


class TakeBack(TrainerCallback):
    """Lets a guarding trainer take updates back, before other callbacks see them."""

    def __init__(self, trainer: Guarding) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.undo_unless_moved()


class Settle(TrainerCallback):
    """Lets a guarding trainer learn of a step before it is logged, evaluated or saved."""

    def __init__(self, trainer: Guarding) -> None:
        self.trainer = trainer

    def on_step_end(self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.trainer.settle()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.trainer.settle()


def problem_of(parameters: Iterable[Tensor]) -> str | None:
    """What is wrong with parameters, if anything: such a state would not load again."""
    problems = {problem for each in parameters if (problem := unsound(each))}
    if not problems:
        return None
    return "parameters are not finite" if "is not finite" in problems else f"parameters exceed {LARGEST:.0e}"


def remedy_of(model: JSCPTModel, from_the_start: bool, tasks: Sequence[str] | None = None) -> str:
    """What to do about steps that are not finite; before a first good one nothing hangs on the learning rate."""
    images = "the images" if tasks is None else f"the images of {list(tasks)}"
    if from_the_start:
        return f"So it was from the first step on: {cause_of_nan(model)} ({images})."
    return f"Lower `learning_rate`, or look at {images}."
