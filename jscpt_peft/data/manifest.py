"""The manifest: which items a run used, as JSON that can be compared and re-used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from jscpt_peft.data.benchmarks import BENCHMARKS
from jscpt_peft.data.found import FoundTask, keys_of
from jscpt_peft.data.task import SPLITS
from jscpt_peft.reading import one_line, read_json
from jscpt_peft.settings import path_given

MANIFEST_FILE = "manifest.json"  # what a run calls it, in its output directory
FIELDS = ("task_set", "seed", "options", "tasks")


class UnfittingManifest(ValueError):
    """A manifest names an image that the data do not hold."""


def new_manifest(task_set: str, seed: int, options: dict, chosen: Mapping[str, FoundTask]) -> dict:
    """The manifest of the chosen images."""
    tasks = {task: {split: keys_of(splits[split]) for split in SPLITS} for task, splits in chosen.items()}
    return {"task_set": task_set, "seed": seed, "options": options, "tasks": tasks}


def write_manifest(manifest: dict, path: str | Path) -> None:
    """Write `TaskSet.manifest` to the file `path`."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_manifest(path: str | Path) -> dict:
    """The manifest in the file `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no manifest.
    """
    path = path_given("manifest", path)
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"`manifest` {str(path)!r} cannot be read ({one_line(error)}): give a manifest.json of a run."
        ) from error
    if missing := [field for field in FIELDS if not isinstance(manifest, dict) or field not in manifest]:
        raise ValueError(f"`manifest` {str(path)!r} has no {missing[0]!r}: give a manifest.json of a run.")
    if not _well_formed(**manifest):
        raise ValueError(
            f"`manifest` {str(path)!r} is no list of images by task and split: give a manifest.json of a run."
        )
    return manifest


def _well_formed(options: Any, tasks: Any, task_set: Any, seed: Any, **_: Any) -> bool:
    """Whether the fields are of the right types: a file of this name may come from anybody."""
    if not (isinstance(task_set, str) and type(seed) is int and isinstance(options, dict) and isinstance(tasks, dict)):
        return False
    mappings = [options.get("sources", {}), options.get("images_per_class", {}), *tasks.values()]
    if not all(isinstance(each, dict) for each in mappings):
        return False
    lists = [[*mappings[0].values()], *(keys for splits in tasks.values() for keys in splits.values())]
    return all(isinstance(keys, list) and all(isinstance(each, str) for each in keys) for keys in lists)


def images_of_manifest(
    manifest: dict, task_set: str, found: Mapping[str, FoundTask], source: str
) -> dict[str, FoundTask]:
    """The images that a manifest names, by task, split and class.

    Args:
        task_set: the task set that it has to belong to.
        found: all images that there are.
        source: what holds them, for messages.

    Raises:
        UnfittingManifest: the manifest names an image that is not there.
        ValueError: it belongs to another task set, lacks a split, or names an image twice.
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
        for split, key in ((each, key) for each in SPLITS for key in keys_of_split[each]):
            if key not in class_of:
                raise UnfittingManifest(
                    f"`manifest` names {key!r} ({split} of task {task!r}), which {source} does not hold: give the "
                    "data that the manifest was written for."
                )
            chosen[task][split].setdefault(class_of[key], []).append(key)
    return chosen


def drawn_by(manifest: dict) -> tuple[float | None, int | None]:
    """`train_fraction` and `shots` by which the training images of a manifest were drawn.

    Where none was asked for, it is the benchmarks' own protocol; both are None where that differs among them, and
    where all images were taken.
    """
    options = manifest["options"]
    asked = options.get("train_fraction"), options.get("shots")
    if asked != (None, None):
        return asked
    if manifest["task_set"] == "shapes":
        return None, options.get("images_per_class", {}).get("train")
    known = [BENCHMARKS[name] for name in options.get("sources", {}) if name in BENCHMARKS]
    own = {(benchmark.default_fraction, benchmark.default_shots) for benchmark in known}
    return own.pop() if len(own) == 1 else (None, None)


def on_hub(manifest: dict) -> bool:
    """Whether all images of a benchmark's manifest are in repositories on the Hub that it is read from."""
    return all(
        name in BENCHMARKS and origin.partition("@")[0] in {place.repository for place in BENCHMARKS[name].hub}
        for name, origin in manifest["options"].get("sources", {}).items()
    )


def seen_in_training(trained: dict, tested: dict) -> dict[str, int | None]:
    """How many test images of a split are among those that a model was trained, validated or scheduled with.

    Images are compared by their keys. Numbers of rows (`train/17`) mean the same in the same commit of a repository
    only, and paths where the two manifests have some in common.

    Args:
        trained: manifest of the model's own run.
        tested: manifest of the split.

    Returns:
        The number for every task of `tested`; None where the keys cannot be compared.
    """
    return {
        task: len(set(splits["test"]) & _used(trained, task)) if _comparable(trained, tested, task) else None
        for task, splits in tested["tasks"].items()
    }


def _used(manifest: dict, task: str) -> set[str]:
    """Keys of all images of a task but the test images."""
    return set(chain(*(keys for split, keys in manifest["tasks"][task].items() if split != "test")))


def _comparable(one: dict, other: dict, task: str) -> bool:
    if task not in one["tasks"]:
        return False
    if one["task_set"] == other["task_set"] == "shapes":
        return True  # a key is all that the image is drawn from
    first, second = (set(chain(*each["tasks"][task].values())) for each in (one, other))
    shared = first & second
    rows = any(key.rpartition("/")[2].isdigit() for key in shared)
    return bool(shared) and (not rows or _origin(one, task) == _origin(other, task))


def _origin(manifest: dict, task: str) -> str | None:
    """What the images of a benchmark's task were read from."""
    for name, origin in manifest["options"].get("sources", {}).items():
        # a task's name has the benchmark's before it where another one in the mixture has a task of that name
        if name in BENCHMARKS and {task, task.removeprefix(f"{name}_")} & set(BENCHMARKS[name].tasks):
            return origin
    return None
