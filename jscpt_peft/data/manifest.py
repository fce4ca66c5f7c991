"""The manifest: which items a run used, as JSON that can be compared and re-used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from jscpt_peft.data.found import FoundTask
from jscpt_peft.data.task import SPLITS

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


def images_of_manifest(
    manifest: dict, task_set: str, found: Mapping[str, FoundTask], source: str
) -> dict[str, FoundTask]:
    """The images that a manifest names, by task, split and class.

    Args:
        manifest: as `read_manifest` gives it.
        task_set: the task set that it has to belong to.
        found: all images that there are.
        source: what holds them, for messages.

    Raises:
        ValueError: the manifest belongs to another task set, lacks a split, or names an image that is not there.
    """
    if manifest["task_set"] != task_set:
        raise ValueError(f"`manifest` belongs to the task set {manifest['task_set']!r}, not to {task_set!r}.")
    chosen: dict[str, FoundTask] = {}
    for task, keys_of_split in manifest["tasks"].items():
        if set(keys_of_split) != set(SPLITS):
            raise ValueError(f"`manifest` gives task {task!r} the splits {list(keys_of_split)}: it needs {SPLITS}.")
        class_of = {
            key: name for classes in found.get(task, {}).values() for name, keys in classes.items() for key in keys
        }
        repeated = [key for key, count in Counter(chain(*keys_of_split.values())).items() if count > 1]
        if repeated:
            raise ValueError(f"`manifest` names {repeated[0]!r} of task {task!r} twice: it has been changed.")
        chosen[task] = {split: {} for split in SPLITS}
        for split in SPLITS:
            for key in keys_of_split[split]:
                if key not in class_of:
                    raise ValueError(
                        f"`manifest` names {key!r} ({split} of task {task!r}), which {source} does not hold: give "
                        "the data that the manifest was written for."
                    )
                chosen[task][split].setdefault(class_of[key], []).append(key)
    return chosen
