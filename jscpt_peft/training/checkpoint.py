"""Checkpoints that are whole or not there: written aside, flushed to disk with the digest of every file, renamed.

`checkpoint.json` holds the digests, the configuration that the checkpoint was made with, and its own digest. It is
written last: a checkpoint without it, or one that it does not describe, is never loaded.
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

from jscpt_peft.reading import read_json

DIGESTS = "checkpoint.json"
UNFINISHED = ".unfinished-"  # hidden, so that nothing which looks for `checkpoint-*` takes it for one
SET_ASIDE = "set_aside"  # folder for checkpoints that a run must not go on from by itself


def unfinished(final: Path) -> Path:
    """Where the files of the checkpoint `final` are written."""
    return final.with_name(UNFINISHED + final.name)


def start_checkpoint(final: Path) -> None:
    """Makes the empty folder that the processes write the checkpoint `final` into."""
    recover(final.parent)
    unfinished(final).mkdir(parents=True)


def finish_checkpoint(final: Path, configuration: Mapping[str, Any]) -> None:
    """Writes the digests of what was written, flushes all of it to disk and gives it its name.

    Args:
        final: the checkpoint's folder; another checkpoint of that name is replaced.
        configuration: what a run must agree with to go on from here, as JSON.

    Raises:
        OSError: the disk is full or the like.
    """
    folder = unfinished(final)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    record = json.loads(json.dumps({"files": digests, "configuration": configuration}, default=str))
    text = json.dumps({**record, "sha256": _digest_of(record)}, indent=1)
    (folder / DIGESTS).write_text(text + "\n", encoding="utf-8")
    for path in (*files, folder / DIGESTS, folder, folder.parent):
        _flush_to_disk(path)
    if final.exists():
        shutil.rmtree(final)  # from here on `recover` finishes what a kill leaves
    folder.rename(final)
    with suppress(OSError):  # the checkpoint is there
        _flush_to_disk(final.parent)


def recover(run: Path) -> None:
    """Finishes a checkpoint that lacks nothing but its name, and removes what a killed run has left of others."""
    for folder in run.glob(f"{UNFINISHED}*"):
        final = folder.with_name(folder.name.removeprefix(UNFINISHED))
        if _is_whole(folder):
            shutil.rmtree(final, ignore_errors=True)
            with suppress(OSError):
                folder.rename(final)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def check_checkpoint(checkpoint: Path, configuration: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that tells why a run of this configuration cannot go on from a checkpoint, if so.

    Args:
        checkpoint: its folder.
        configuration: of the run; every entry must be as it was when the checkpoint was made.
    """
    if not checkpoint.is_dir():
        raise ValueError("there is no such directory")
    record = _read(checkpoint)
    for name, digest in record["files"].items():
        try:
            changed = _digest(checkpoint / name) != digest
        except FileNotFoundError as error:
            raise ValueError(f"its file {name} is missing") from error
        except OSError as error:
            raise ValueError(f"its file {name} cannot be read ({error})") from error
        if changed:
            raise ValueError(f"its file {name} is not what was written (its digest differs)")
    for name, value in json.loads(json.dumps(configuration, default=str)).items():
        made_with = record["configuration"].get(name)
        if made_with != value:
            raise ValueError(f"it was made with `{name}` = {_short(made_with)}, this run has {_short(value)}")


def configuration_of(checkpoint: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was made with."""
    return _read(checkpoint)["configuration"]


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
        run: its folder.
        limit: how many may stay.
        keep: checkpoints that stay in any case.
    """
    found = checkpoints(run)
    surplus = len(found) - limit if limit else 0
    if surplus > 0:
        for checkpoint in sorted((path for path in found if path not in keep), key=_is_whole)[:surplus]:
            shutil.rmtree(checkpoint, ignore_errors=True)


def remove_checkpoints(run: Path) -> None:
    """Removes all checkpoints of a run, finished or not."""
    for checkpoint in (*checkpoints(run), *run.glob(f"{UNFINISHED}*")):
        shutil.rmtree(checkpoint)


def set_aside_after(run: Path, step: int) -> list[Path]:
    """Moves the checkpoints of later steps than `step` into the folder `set_aside`; returns where they are now."""
    aside = []
    for checkpoint in checkpoints(run):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            aside.append(run / SET_ASIDE / checkpoint.name)
            aside[-1].parent.mkdir(exist_ok=True)
            shutil.rmtree(aside[-1], ignore_errors=True)
            checkpoint.rename(aside[-1])
    return aside


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first; a user's `checkpoint-500-good` is none."""
    named = [(re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name), path) for path in run.glob("*")]
    return [path for _, path in sorted((int(name[1]), path) for name, path in named if name and path.is_dir())]


def _is_whole(checkpoint: Path) -> bool:
    try:
        check_checkpoint(checkpoint, {})
    except ValueError:
        return False
    return True


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        record = read_json(checkpoint / DIGESTS)
        intact = record.pop("sha256") == _digest_of(record)
    except FileNotFoundError as error:
        raise ValueError(f"it has no {DIGESTS}, so it was not written to its end") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no JSON, or JSON of another form
        intact = False
    if not intact:
        raise ValueError(f"its {DIGESTS} is damaged")
    return record


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
