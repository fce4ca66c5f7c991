"""A `Trainer` whose checkpoints are whole or not there, and which goes on only from one that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput
from transformers.utils import logging

from .checkpoint import (
    ABANDONED,
    check_checkpoint,
    checkpoints,
    clear_remains,
    delete_oldest,
    finish_checkpoint,
    last_valid_checkpoint,
    sealed_configuration,
    set_aside_after,
    staging_directory,
    start_checkpoint,
)
from .distributed import by_first_process, gather_objects, wait_for_all

logger = logging.get_logger(__name__)

# What writing to a full disk raises, by who writes: Python, torch.save, safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
# Arguments that are part of the optimizers' states, so that those of the checkpoint stay in force.
RESTORED = ("learning_rate", "weight_decay", "momentum", "scheduler_learning_rate")
RESTORED += ("adam_beta1", "adam_beta2", "adam_epsilon")
BEST = ("best_metric", "best_global_step", "best_model_checkpoint")


class ResumableTrainer(Trainer):
    """Writes every checkpoint whole or not at all, on any number of processes, and resumes from the last valid one.

    A checkpoint that cannot be written (a full disk) is announced and left out: training goes on, and the earlier
    checkpoints stay as they are.

    Attributes:
        unsaved_error: why the last checkpoint could not be written; `None` where it could.
        stop_agreed: whether all processes know that training ends after the step under way, with a checkpoint.
    """

    unsaved_error: str | None = None
    stop_agreed = False

    def fixed_configuration(self) -> dict[str, Any]:
        """What a checkpoint must have in common with a run that goes on from it, as JSON. For subclasses."""
        return {}

    def reproducing_configuration(self) -> dict[str, Any]:
        """What must be equal too for the resumed run to be the one that never stopped, bit for bit. For subclasses."""
        return {}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint, or `True` for the last valid one in `output_dir`.
            args, kwargs: of `Trainer.train`.

        Raises:
            ValueError: the checkpoint is damaged, of another configuration or not there, or no valid one is.
        """
        checkpoint, run = None, Path(self.args.output_dir)
        if not resume_from_checkpoint and self.args.should_save and checkpoints(run):
            logger.warning(
                f"`output_dir` {run} holds checkpoints of an earlier run, which count towards `save_total_limit` and "
                "from which `resume_from_checkpoint=True` may go on: remove them, or choose another directory."
            )
        if resume_from_checkpoint:
            checkpoint = str(by_first_process(lambda: self._checkpoint_to_resume(resume_from_checkpoint)))
        return super().train(checkpoint, *args, **kwargs)

    def _checkpoint_to_resume(self, asked: str | bool) -> Path:
        run, configuration = Path(self.args.output_dir), self.fixed_configuration()
        clear_remains(run)
        newest, refused = last_valid_checkpoint(run, configuration)
        if asked is not True:
            try:
                check_checkpoint(Path(asked), configuration)
            except ValueError as reason:
                remedy = f"The last valid one is {newest}." if newest else f"{run} holds no valid one."
                raise ValueError(f"`resume_from_checkpoint` {asked} cannot be used: {reason}. {remedy}") from reason
            newest = Path(asked)
            if newest.resolve().parent == run.resolve():
                self._abandon_after(TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME)).global_step)
        elif newest is None:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in refused.items())
            raise ValueError(
                f"`resume_from_checkpoint` is True, but `output_dir` {run} holds no checkpoint to go on from"
                f"{f' ({reasons})' if reasons else ''}. Leave it out to start anew."
            )
        else:
            for path, reason in refused.items():
                logger.warning(f"{path} is passed over: {reason}.")
            logger.warning(f"Going on from {newest}.")
        self._warn_of_changes(sealed_configuration(newest), self.reproducing_configuration())
        return newest

    def _abandon_after(self, step: int) -> None:
        """Else `True` would later go on from what was trained after the step that this run is taken back to."""
        aside = set_aside_after(Path(self.args.output_dir), step, ABANDONED)
        if aside:
            logger.warning(
                f"The run is taken back to step {step}: later checkpoints are now {', '.join(map(str, aside))}."
            )

    def _warn_of_changes(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [name for name in now if before.get(name) != now[name]]
        restored = [f"`{name}` {before.get(name)} (not {now[name]})" for name in changed if name in RESTORED]
        others = [f"`{name}` ({before.get(name)}, now {now[name]})" for name in changed if name not in RESTORED]
        if restored:
            logger.warning(f"The optimizers keep the checkpoint's {', '.join(restored)}.")
        if others:
            logger.warning(f"The run goes on, but not as it would have without a stop: {', '.join(others)} changed.")

    def _init_training_state(self, max_steps: int, updates: int, num_train_epochs: int, *args: Any) -> tuple[int, int]:
        """As `Trainer`'s, which would take one step more where the checkpoint is that of the last one."""
        epochs, batches = super()._init_training_state(max_steps, updates, num_train_epochs, *args)
        self._saved_best = self._best()
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else (epochs, batches)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As `Trainer`'s, which with `save_strategy="best"` decides on saving: a run that is told to stop saves."""
        return super()._determine_best_metric(metrics, trial) or self.stop_agreed

    def _finalize_training(self, *args: Any) -> TrainOutput:
        """As `Trainer`'s, which with `save_total_limit=1` deletes all but the best: also the one to go on from."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:  # noqa: ARG002 (Trainer's form)
        """As `Trainer`'s, into a directory of its own that becomes the checkpoint when all of it is on disk."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run = Path(self._get_output_dir(trial))
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._note_best_checkpoint(run, final)
        self.unsaved_error = self._write_whole(final)
        if self.unsaved_error is not None:
            logger.error(
                f"{final} could not be written and is left out ({self.unsaved_error}). Training goes on; earlier "
                "checkpoints are as they were. Make room on the disk, or set `save_total_limit`."
            )
            self._forget_unsaved_best()
            return
        self._saved_best = self._best()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            delete_oldest(run, self.args.save_total_limit, {final, *([Path(best)] if best else [])})

    def _write_whole(self, final: Path) -> str | None:
        """Every process's part, then the seal and the rename by the first; what went wrong anywhere, if anything."""
        staging = staging_directory(final)
        configuration = self.fixed_configuration() | self.reproducing_configuration()
        failure = (
            by_first_process(lambda: _failure(start_checkpoint, final))
            or _first(gather_objects(_failure(self._write_parts, staging)))
            or by_first_process(lambda: _failure(finish_checkpoint, final, configuration))
        )
        if failure is not None:
            by_first_process(lambda: _failure(clear_remains, final.parent))
        wait_for_all()
        return failure

    def _write_parts(self, staging: Path) -> None:
        if not staging.is_dir():
            raise OSError(f"`output_dir` {staging.parent} is not the first process's: let all of them share one")
        directory = str(staging)
        self.save_model(directory, _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(directory)
            self._save_scaler(directory)
            self._save_rng_state(directory)
        if self.args.should_save:
            for each in (*self.callback_handler.callbacks, self.control):
                if isinstance(each, ExportableState):
                    self.state.stateful_callbacks[type(each).__name__] = each.state()
            self.state.save_to_json(str(staging / TRAINER_STATE_NAME))

    def _forget_unsaved_best(self) -> None:
        """The best checkpoint is the best of those that there are."""
        if self.state.best_global_step == self.state.global_step:
            vars(self.state).update(self._saved_best)

    def _best(self) -> dict[str, Any]:
        return {name: vars(self.state)[name] for name in BEST}

    def _note_best_checkpoint(self, run: Path, final: Path) -> None:
        if self.args.save_strategy == SaveStrategy.NO or not self.state.best_global_step:
            return
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best == final or best.exists():
            self.state.best_model_checkpoint = str(best)


def _failure(write: Callable[..., None], *arguments: Any) -> str | None:
    """Runs `write`; what it failed with, in one line, if it did."""
    try:
        write(*arguments)
    except WRITE_ERRORS as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _first(failures: list[str | None]) -> str | None:
    return next((failure for failure in failures if failure is not None), None)
