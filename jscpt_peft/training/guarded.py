"""A `Trainer` that survives tasks which are not finite, and saves its last good state where they stay so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from .arguments import JSCPTTrainingArguments
from .bilevel import UpperLevel
from .checkpoint import SPOILED, set_aside_after
from .distributed import by_first_process
from .faults import Snapshot
from .resumable import ResumableTrainer
from .task_gradients import TaskMeans

logger = logging.get_logger(__name__)


class GuardedTrainer(ResumableTrainer):
    """Keeps the state before the last step of finite losses, and writes no checkpoint of a state that is in doubt.

    Attributes:
        nonfinite_steps: steps in a row, up to now, in which a task's loss or gradient was not finite.
    """

    args: JSCPTTrainingArguments
    task_names: list[str]
    upper_level: UpperLevel
    nonfinite_steps = 0
    # State, step and epoch before the last step of finite losses.
    _good: tuple[Snapshot, int, float] | None = None

    def forget_faults(self) -> None:
        """Nothing is left over from a run that was broken off."""
        self._good, self.nonfinite_steps = None, 0

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """θ."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def guard(self, step: TaskMeans) -> None:
        """Counts steps in a row in which a task is not finite; its weight is zero, and too many stop the run."""
        if not bool(step.nonfinite.any()):
            self.nonfinite_steps = 0
            # The parameters have just shown that they are good: the update that follows may spoil them.
            stateful = [self.optimizer, self.lr_scheduler, self.upper_level]
            self._good = (
                Snapshot(self.trainable_parameters(), stateful),
                self.state.global_step,
                self.state.epoch or 0.0,
            )
            return
        self.nonfinite_steps += 1
        tasks = [name for name, wrong in zip(self.task_names, step.nonfinite, strict=True) if wrong]
        logger.warning(
            f"Step {self.state.global_step + 1}: loss or gradient of {tasks} is not finite; weight 0 in this step "
            f"({self.nonfinite_steps} in a row)."
        )
        if self.nonfinite_steps >= self.args.max_nonfinite_steps:
            raise FloatingPointError(
                f"The loss of {tasks} was not finite in {self.nonfinite_steps} steps in a row "
                f"(`max_nonfinite_steps`). {self.save_last_good_state()} Lower `learning_rate`, or look at these "
                "tasks' images."
            )

    def save_last_good_state(self) -> str:
        """Goes back to before the first of the steps in a row and saves that; says what is saved where."""
        if self._good is None:
            return "No step was good, so nothing is saved."
        snapshot, self.state.global_step, self.state.epoch = self._good
        snapshot.restore()
        self.nonfinite_steps = 0
        # What was saved after the update that broke the run must not be what it goes on from.
        by_first_process(lambda: set_aside_after(Path(self.args.output_dir), self.state.global_step, SPOILED))
        self._save_checkpoint(self.model, trial=None)
        if self.unsaved_error is not None:
            return f"The last good state, of step {self.state.global_step}, could not be saved."
        return f"The last good state, of step {self.state.global_step}, is saved in {self.args.output_dir}."

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.nonfinite_steps:
            self.unsaved_error = f"tasks were not finite in the last {self.nonfinite_steps} steps"
            logger.warning(f"Step {self.state.global_step} is not saved: {self.unsaved_error}.")
            self._forget_unsaved_best()
            return
        super()._save_checkpoint(model, trial)
