"""The manifest: which items a run used, as JSON that can be compared and re-used."""

from __future__ import annotations

import json
from pathlib import Path

FIELDS = ("task_set", "seed", "options", "tasks")


def write_manifest(manifest: dict, path: str | Path) -> None:
    """Write `TaskSet.manifest` to the file `path`."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_manifest(path: str | Path) -> dict:
    """The manifest in the file `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no manifest.
    """
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`manifest` {str(path)!r} is not JSON ({error}): give a manifest.json of a run.") from error
    missing = [field for field in FIELDS if not isinstance(manifest, dict) or field not in manifest]
    if missing:
        raise ValueError(f"`manifest` {str(path)!r} has no {missing[0]!r}: give a manifest.json of a run.")
    return manifest
