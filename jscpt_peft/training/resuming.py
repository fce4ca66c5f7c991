"""Which checkpoint a run goes on from, and what that changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from jscpt_peft.settings import check_setting

from . import checkpoint as files
from .configuration import RESTORED

logger = logging.get_logger(__name__)


def checkpoint_to_resume(
    asked: str | bool, run: Path, configuration: Mapping[str, Any], reproducing: Mapping[str, Any]
) -> Path:
    """The checkpoint to go on from; what is passed over, set aside or changed is logged.

    Args:
        asked: a checkpoint, or `True` for the last valid one of the run.
        run: its folder.
        configuration: what the checkpoint must have in common with the run.
        reproducing: what it should have in common.

    Raises:
        ValueError: the checkpoint is damaged, of another configuration or not there, or no valid one is.
    """
    check_setting("resume_from_checkpoint", asked, bool | str | os.PathLike)
    files.recover(run)
    newest, refused = files.last_valid_checkpoint(run, configuration)
    if asked is not True:
        try:
            files.check_checkpoint(Path(asked), configuration)
        except ValueError as reason:
            remedy = f"The last valid one is {newest}." if newest else f"{run} holds no valid one."
            raise ValueError(f"`resume_from_checkpoint` {asked} cannot be used: {reason}. {remedy}") from reason
        newest = Path(asked)
        if newest.resolve().parent == run.resolve():  # else `True` would later go on from what is given up here
            step = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME)).global_step
            aside = ", ".join(map(str, files.set_aside_after(run, step)))
            if aside:
                logger.warning(f"The run is taken back to step {step}: later checkpoints are now {aside}.")
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
    _warn_of_changes(files.configuration_of(newest), reproducing)
    return newest


def _warn_of_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    restored = [f"`{name}` {before.get(name)} (not {now[name]})" for name in changed if name in RESTORED]
    others = [f"`{name}` ({before.get(name)}, now {now[name]})" for name in changed if name not in RESTORED]
    if restored:
        logger.warning(f"The optimizers keep the checkpoint's {', '.join(restored)}.")
    if others:
        logger.warning(f"The run goes on, but not as it would have without a stop: {', '.join(others)} changed.")
