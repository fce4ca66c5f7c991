"""Checkpoints of `JSCPTTrainer`: whole or not there, resumed only where they fit, and never of a spoiled state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput
from transformers.utils import logging

from . import checkpoint as files
from .configuration import fixed_configuration, reproducing_configuration
from .distributed import by_first_process, gather_objects, wait_for_all
from .guarding import Guarding
from .resuming import checkpoint_to_resume
from .step_log import StepLog

logger = logging.get_logger(__name__)

SCHEDULER_FILE = "task_scheduler.pt"
# What writing to a full disk raises, by who writes: Python, torch.save, safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
BEST = ("best_metric", "best_global_step", "best_model_checkpoint")


class Checkpointing(Guarding):
    """Writes every checkpoint whole or not at all, on any number of processes, and resumes from the last valid one.

    A checkpoint that cannot be written (a full disk) is announced and left out: training goes on, and the earlier
    checkpoints stay as they are. Where tasks stay non-finite, the state before the first of these steps is saved.

    Attributes:
        unsaved_error: why the last checkpoint could not be written; `None` where it could.
        loaded_step: step of the best checkpoint, if training ended with its weights.
        logged_before_loading: how many entries the log had when they were loaded.
    """

    dev_dataset: Any
    adapter_name: str
    step_log: StepLog
    unsaved_error: str | None = None
    loaded_step: int | None = None
    logged_before_loading = 0

    def fixed_configuration(self) -> dict[str, Any]:
        """What a checkpoint must have in common with a run that goes on from it, as JSON."""
        kinds = {"weighting_class": type(self.weighting).__name__, "adapter": self.adapter_name}
        return fixed_configuration(self.model, self.args) | kinds

    def reproducing_configuration(self) -> dict[str, Any]:
        """What must be equal too for the resumed run to be the one that never stopped, bit for bit."""
        datasets = {"train": self.train_dataset, "dev": self.dev_dataset}
        sizes = {name: [] if dataset is None else dataset.sizes for name, dataset in datasets.items()}
        return reproducing_configuration(self.model, self.args, sizes)

    # ---- resuming ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint, or `True` for the last valid one in `output_dir`.
            args, kwargs: of `Trainer.train`.

        Raises:
            ValueError: the checkpoint is damaged, of another configuration or not there, or no valid one is.
            FloatingPointError: the run ends in steps or with parameters that are not finite.
        """
        self._unread = self._good = self.loaded_step = None
        self.nonfinite_steps = 0
        checkpoint, state, run = None, TrainerState(), Path(self.args.output_dir)
        if resume_from_checkpoint:
            configurations = self.fixed_configuration(), self.reproducing_configuration()
            checkpoint = str(
                by_first_process(lambda: checkpoint_to_resume(resume_from_checkpoint, run, *configurations))
            )
            state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        elif self.args.should_save and files.checkpoints(run):
            logger.warning(
                f"`output_dir` {run} holds checkpoints of an earlier run, which count towards `save_total_limit` and "
                "from which `resume_from_checkpoint=True` may go on: remove them, or choose another directory."
            )
        self._resumed_step, self._saved_best = state.global_step, _best(state)
        # With a limit of 1 `Trainer` would delete all but the best at the end: also the one to go on from.
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super().train(checkpoint, *args, **kwargs)
            self.check_end()
            return output
        finally:
            self.args.save_total_limit, self.is_in_train = self._limit, False

    def set_initial_training_values(self, *args: Any) -> tuple[Any, ...]:
        """As `Trainer`'s; no epoch is left where the checkpoint is that of the last step, which it would exceed."""
        epochs, steps_per_epoch, *others, max_steps = super().set_initial_training_values(*args)
        if self._resumed_step >= max_steps:
            epochs = min(epochs, self._resumed_step // steps_per_epoch)
        self.upper_level.begin(max_steps)
        return epochs, steps_per_epoch, *others, max_steps

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As `Trainer`'s; Ω and its optimizer too."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, SCHEDULER_FILE)
        if not path.exists():
            logger.warning(f"{path} does not exist (saved with `save_only_model`?): the scheduler starts anew.")
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.nonfinite_steps = state.pop("nonfinite_steps")
        self.upper_level.load_state_dict(state)

    def _load_best_model(self) -> None:
        """The active adapter of the best checkpoint, which `Trainer` finds under the name `default` alone."""
        best = Path(self.state.best_model_checkpoint)
        moved = Path(self.args.output_dir, best.name)  # with the run's directory
        folder = moved if moved.is_dir() else best
        if self.adapter_name != "default":  # as PEFT writes it
            folder = folder / self.adapter_name
        if not Path(folder, SAFETENSORS_WEIGHTS_NAME).exists():
            logger.warning(f"The best checkpoint {best} is gone: the weights are those of the last step.")
            return
        set_peft_model_state_dict(self.model, load_peft_weights(str(folder), device="cpu"), self.adapter_name)
        self.loaded_step, self.logged_before_loading = self.state.best_global_step, len(self.state.log_history)

    # ---- saving -----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:  # noqa: ARG002 (Trainer's form)
        """As `Trainer`'s, into a folder of its own that becomes the checkpoint when all of it is on disk."""
        self.step_log.flush()  # a run that goes on from here finds its history whole
        run = Path(self._get_output_dir(trial))
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.unsaved_error = self.spoiled()
        if self.unsaved_error is not None:
            logger.warning(f"Step {self.state.global_step} is not saved: {self.unsaved_error}.")
        else:
            self.store_flos()
            self._note_best_checkpoint(run, final)
            self.unsaved_error = self._write_whole(final)
            if self.unsaved_error is not None:
                logger.error(
                    f"{final} could not be written and is left out ({self.unsaved_error}). Training goes on; earlier "
                    "checkpoints are as they were. Make room on the disk, or set `save_total_limit`."
                )
        if self.unsaved_error is not None:
            if self.state.best_global_step == self.state.global_step:  # the best is the best of those that there are
                vars(self.state).update(self._saved_best)
            return
        self._saved_best = _best(self.state)
        self.checkpoint_saved(final)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            files.delete_oldest(run, self._limit, {final, *([Path(best)] if best else [])})

    def checkpoint_saved(self, checkpoint: Path) -> None:
        """Called when a checkpoint is whole, before older ones are deleted. For subclasses."""

    def _write_whole(self, final: Path) -> str | None:
        """Every process's part, then digests and name by the first; what went wrong anywhere, if anything."""
        configuration = self.fixed_configuration() | self.reproducing_configuration()
        failure = by_first_process(lambda: _failure(files.start_checkpoint, final))
        if failure is None:
            failures = gather_objects(_failure(self._write_parts, files.unfinished(final)))
            failure = next((each for each in failures if each is not None), None)
        if failure is None:
            failure = by_first_process(lambda: _failure(files.finish_checkpoint, final, configuration))
        if failure is not None:
            by_first_process(lambda: _failure(files.recover, final.parent))
        wait_for_all()
        return failure

    def _write_parts(self, folder: Path) -> None:
        if not folder.is_dir():
            raise OSError(f"`output_dir` {folder.parent} is not the first process's: let all of them share one")
        directory = str(folder)
        self.save_model(directory, _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(directory)
            self._save_scaler(directory)
            self._save_rng_state(directory)
        if self.args.should_save:
            if not self.args.save_only_model:
                state = {**self.upper_level.state_dict(), "nonfinite_steps": self.nonfinite_steps}
                torch.save(state, folder / SCHEDULER_FILE)
            for each in (*self.callback_handler.callbacks, self.control):
                if isinstance(each, ExportableState):
                    self.state.stateful_callbacks[type(each).__name__] = each.state()
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _note_best_checkpoint(self, run: Path, final: Path) -> None:
        if self.args.save_strategy == SaveStrategy.NO or not self.state.best_global_step:
            return
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best == final or best.exists():
            self.state.best_model_checkpoint = str(best)


def _best(state: TrainerState) -> dict[str, Any]:
    return {name: vars(state)[name] for name in BEST}


def _failure(write: Callable[..., Any], *arguments: Any) -> str | None:
    """Runs `write`; what it failed with, in one line, if it did."""
    try:
        write(*arguments)
    except WRITE_ERRORS as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None
