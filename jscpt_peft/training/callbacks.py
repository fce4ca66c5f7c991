"""Callbacks of `JSCPTTrainer`, and those that a command-line program wants."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from jscpt_peft.data import TaskBalancedBatchSampler

from .distributed import world_size

logger = logging.get_logger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SetEpoch(TrainerCallback):
    """Tells the batch sampler the epoch before its batches are asked for, also after a resume in mid-epoch."""

    def __init__(self, sampler: TaskBalancedBatchSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, _args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.sampler.set_epoch(int(state.epoch))


class SaveAfterEvaluation(TrainerCallback):
    """A checkpoint that is due at the last step of an epoch waits for the evaluation of that epoch.

    It would else lack it, and a run that goes on from there starts with the next epoch.
    """

    def __init__(self) -> None:
        self.waits = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        follows = args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= state.epoch
        self.waits = control.should_save and follows and epoch_is_over(state)
        if self.waits:
            control.should_save = False

    def on_epoch_end(self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = control.should_save or self.waits
        self.waits = False


def epoch_is_over(state: TrainerState) -> bool:
    """Whether the last step was that of an epoch, or of the training."""
    return state.epoch == int(state.epoch) or state.global_step >= state.max_steps


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C or SIGTERM finishes the step under way, saves a checkpoint and ends training; the same one again at once.

    The processes of a run need not get the signal at the same step, or all of them: they agree with the sums of the
    next step, which they read at its end where it is logged or saved, and a step later else.

    Args:
        trainer: the `JSCPTTrainer` that this callback is added to.

    Attributes:
        interrupted: whether training ended that way.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.interrupted = False
        self._previous: dict[int, Any] = {}
        self._strategy: SaveStrategy | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.interrupted = False
        self._previous = {number: signal.signal(number, self._interrupt) for number in SIGNALS}

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.trainer.stop_asked = True
        # The other one may be the launcher's, which has ended: it does not count as a second.
        signal.signal(number, self._previous.pop(number))
        name = signal.Signals(number).name
        logger.warning(f"{name}: the step under way is finished and saved; once more ends the run at once.")

    def restore_signals(self) -> None:
        """Gives the signals back to whom they belonged before training."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if world_size() == 1:  # there is nobody to agree with
            self.trainer.stop_agreed = self.trainer.stop_asked
        # After the last step there is nothing to go on with.
        self.interrupted = self.trainer.stop_agreed and state.global_step < state.max_steps
        if self.interrupted:
            control.should_training_stop = True
            control.should_save = False  # but at the end of the epoch, which `Trainer` makes follow at once

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.interrupted:
            control.should_save = True
            if args.save_strategy == SaveStrategy.BEST:  # by which an evaluation would decide anew
                args.save_strategy, self._strategy = SaveStrategy.EPOCH, args.save_strategy
            if not epoch_is_over(state):  # what is due after an epoch is the resumed run's to do
                control.should_evaluate = control.should_log = False

    def on_train_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        self.restore_signals()
        args.save_strategy, self._strategy = self._strategy or args.save_strategy, None


class TaskLines(TrainerCallback):
    """One line a log: the mean loss, then every task's loss and weight."""

    def __init__(self, task_names: list[str]) -> None:
        super().__init__()
        self.task_names = task_names

    def write(self, line: str) -> None:
        """Shows a line."""
        print(line, flush=True)

    def on_log(self, _args: Any, state: TrainerState, *_: Any, logs: dict | None = None, **__: Any) -> None:
        if not (state.is_world_process_zero and logs):
            return
        if "loss" in logs:
            self.write(self._training_line(state.global_step, logs))
        elif "eval_mean_accuracy" in logs:
            accuracies = self._by_task(logs, "eval_accuracy", "{:.1%}")
            mean = logs["eval_mean_accuracy"]
            self.write(f"step {state.global_step:>5}  validation: mean accuracy {mean:.1%}  ({accuracies})")

    def _training_line(self, step: int, logs: dict[str, float]) -> str:
        parts = [f"step {step:>5}", f"loss {logs['loss']:.3f}"]
        if any(f"weight/{name}" in logs for name in self.task_names):
            parts.append(f"loss of {self._by_task(logs, 'loss', '{:.3f}')}")
            parts.append(f"φ {self._by_task(logs, 'weight', '{:.2f}', named=False)}")
        if "scheduler/hypergradient_norm" in logs:
            parts.append(f"‖∇Ω‖ {logs['scheduler/hypergradient_norm']:.2e}")
        return "  ".join(parts)

    def _by_task(self, logs: dict[str, float], series: str, form: str, named: bool = True) -> str:
        values = [(name, logs[f"{series}/{name}"]) for name in self.task_names if f"{series}/{name}" in logs]
        return ", ".join((f"{name} " if named else "") + form.format(value) for name, value in values)


class TaskProgress(TaskLines, ProgressCallback):
    """The same above progress bars."""

    def write(self, line: str) -> None:
        """Shows a line, during training."""
        if self.training_bar is not None:
            self.training_bar.write(line)
