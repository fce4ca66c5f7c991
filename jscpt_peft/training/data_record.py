"""Which images a run has learned from, for the card of its adapter, as the manifest beside it tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jscpt_peft.data import read_manifest
from jscpt_peft.data.manifest import MANIFEST_FILE, drawn_by, on_hub
from jscpt_peft.serving.card import DataRecord

# Task sets whose manifests name no sources.
ORIGINS = {
    "shapes": "drawn by `jscpt_peft`",
    "emoji": "Fluent 3D, Noto, OpenMoji and Twemoji from npm, by `tools/prepare_emoji.py`",
    "folder": "folders of images",
}


def data_record(output: Path, sizes: Mapping[str, int]) -> DataRecord | None:
    """What the manifest in a folder says, if it is of the run and not of an earlier one.

    Args:
        output: folder of the run.
        sizes: task -> number of training images of the run.
    """
    try:
        manifest = read_manifest(output / MANIFEST_FILE)
        if {task: len(splits["train"]) for task, splits in manifest["tasks"].items()} != sizes:
            return None
        task_set, options = manifest["task_set"], manifest["options"]
        sources = options.get("sources") or {task_set: ""}
        rows = {name: _row({**manifest, "options": {**options, "sources": {name: sources[name]}}}) for name in sources}
        return DataRecord(task_set, int(manifest["seed"]), rows)
    # No such file, or somebody else's, with values of other kinds.
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _row(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """What the one source of a manifest is, and which part of its training images was drawn."""
    ((_, origin),) = manifest["options"]["sources"].items()
    fraction, shots = drawn_by(manifest)
    if fraction is not None:
        part = f"{100 * fraction:.3g} % of each class"
    else:
        part = "all training images" if shots is None else f"up to {shots:d} of each class"
    if not origin:
        return ORIGINS[manifest["task_set"]], part
    if on_hub(manifest):
        return f"`{origin}` on the Hub", part
    absolute = PurePosixPath(origin).is_absolute() or PureWindowsPath(origin).is_absolute()
    return f"the folder `{PureWindowsPath(origin).name if absolute else origin}`", part
