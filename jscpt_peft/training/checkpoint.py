"""Checkpoints that are whole or not there: written aside, sealed with the digest of every file, then renamed.

A seal, `checkpoint.json`, tells a truncated or altered file, and a checkpoint of another configuration, before
anything of it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

SEAL = "checkpoint.json"
# Hidden, so that nothing which looks for `checkpoint-*` takes them for checkpoints.
INCOMPLETE, REPLACED = ".incomplete-", ".replaced-"
# Set aside: of an update that broke the run, and of later steps than the one that a run was taken back to.
SPOILED, ABANDONED = "spoiled-", "abandoned-"


def staging_directory(final: Path) -> Path:
    """Where the files of the checkpoint `final` are written."""
    return final.with_name(INCOMPLETE + final.name)


def start_checkpoint(final: Path) -> None:
    """Makes the staging directory, empty, before the processes write; what a killed run left is cleared away."""
    clear_remains(final.parent)
    staging_directory(final).mkdir(parents=True)


def finish_checkpoint(final: Path, configuration: Mapping[str, Any]) -> None:
    """Seals the files in the staging directory and puts it in the place of `final`, by one rename.

    Args:
        final: the checkpoint's directory; another checkpoint of that name is replaced.
        configuration: what a run must agree with to go on from here, as JSON.

    Raises:
        OSError: the disk is full or the like; `final` is then as it was.
    """
    staging = staging_directory(final)
    files = {
        path.relative_to(staging).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    seal = json.dumps({"files": files, "configuration": configuration}, indent=1, default=str)
    (staging / SEAL).write_text(seal + "\n", encoding="utf-8")
    for path in (*(staging / name for name in files), staging / SEAL, staging):
        _flush_to_disk(path)
    if final.exists():
        final.rename(final.with_name(REPLACED + final.name))
    staging.rename(final)
    with suppress(OSError):  # the checkpoint is there; what follows can wait for the next one
        _flush_to_disk(final.parent)
        clear_remains(final.parent)


def clear_remains(run: Path) -> None:
    """Removes what a run that was killed while saving has left in its directory."""
    for old in run.glob(f"{REPLACED}*"):
        final = old.with_name(old.name.removeprefix(REPLACED))
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)  # killed between the two renames
    for staging in run.glob(f"{INCOMPLETE}*"):
        shutil.rmtree(staging, ignore_errors=True)


def check_checkpoint(checkpoint: Path, configuration: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that tells why a run of this configuration cannot go on from a checkpoint, if so.

    Args:
        checkpoint: its directory.
        configuration: of the run; every entry must be as it was when the checkpoint was made.
    """
    if not checkpoint.is_dir():
        raise ValueError("there is no such directory")
    seal = _read_seal(checkpoint)
    for name, expected in seal["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise ValueError(f"its file {name} is missing")
        try:
            size, digest = path.stat().st_size, _digest(path)
        except OSError as error:
            raise ValueError(f"its file {name} cannot be read ({error})") from error
        if size != expected["bytes"]:
            raise ValueError(f"its file {name} has {size} bytes instead of {expected['bytes']}")
        if digest != expected["sha256"]:
            raise ValueError(f"its file {name} is not what was written (its digest differs)")
    for name, value in json.loads(json.dumps(configuration, default=str)).items():
        made_with = seal["configuration"].get(name)
        if made_with != value:
            raise ValueError(f"it was made with `{name}` = {_short(made_with)}, this run has {_short(value)}")


def sealed_configuration(checkpoint: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was sealed with."""
    return _read_seal(checkpoint)["configuration"]


def last_valid_checkpoint(run: Path, configuration: Mapping[str, Any]) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that a run of this configuration can go on from, and why each newer one is not."""
    refused: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints(run)):
        try:
            check_checkpoint(checkpoint, configuration)
        except ValueError as reason:
            refused[checkpoint] = str(reason)
        else:
            return checkpoint, refused
    return None, refused


def delete_oldest(run: Path, limit: int | None, keep: set[Path]) -> None:
    """Deletes checkpoints of a run beyond `limit` (`None` or 0: no limit), damaged ones first, then the oldest.

    Args:
        run: its directory.
        limit: how many may stay.
        keep: checkpoints that stay in any case.
    """
    found = checkpoints(run)
    surplus = len(found) - limit if limit else 0
    if surplus > 0:
        for checkpoint in sorted((path for path in found if path not in keep), key=_is_whole)[:surplus]:
            shutil.rmtree(checkpoint, ignore_errors=True)


def remove_checkpoints(run: Path) -> None:
    """Removes all checkpoints of a run, and what a kill has left of others."""
    for checkpoint in checkpoints(run):
        shutil.rmtree(checkpoint)
    clear_remains(run)


def set_aside_after(run: Path, step: int, prefix: str) -> list[Path]:
    """Puts `prefix` before the names of the checkpoints of later steps, so that no run goes on from them by itself.

    Returns:
        They under their new names.
    """
    later = [path for path in checkpoints(run) if int(path.name.rpartition("-")[2]) > step]
    aside = [checkpoint.with_name(prefix + checkpoint.name) for checkpoint in later]
    for checkpoint, place in zip(later, aside, strict=True):
        shutil.rmtree(place, ignore_errors=True)
        checkpoint.rename(place)
    return aside


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run's directory, oldest first; a user's `checkpoint-500-good` is none."""
    named = [(re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name), path) for path in run.glob("*")]
    return [path for _, path in sorted((int(name[1]), path) for name, path in named if name and path.is_dir())]


def _is_whole(checkpoint: Path) -> bool:
    try:
        check_checkpoint(checkpoint, {})
    except ValueError:
        return False
    return True


def _read_seal(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / SEAL
    if not path.is_file():
        raise ValueError(f"it has no {SEAL}, so it was not written to its end")
    try:
        seal = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(seal["files"], dict) and isinstance(seal["configuration"], dict)):
            raise TypeError
        if not all(each.keys() == {"bytes", "sha256"} for each in seal["files"].values()):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {SEAL} is damaged") from error
    return seal


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
