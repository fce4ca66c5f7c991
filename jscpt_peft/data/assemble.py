"""From what a source holds to a `Task`: class names, labels and the rows that a data loader reads."""

from __future__ import annotations

from collections.abc import Mapping

import datasets

from jscpt_peft.data.found import FoundTask, Images
from jscpt_peft.data.task import SPLITS, Task


def build_task(task_id: int, name: str, splits: FoundTask, images: Images, **options: str) -> Task:
    """The task of the chosen images.

    Args:
        task_id: position in the task set.
        name: the task's name.
        splits: keys of `train`, `validation`, `dev` and `test` by class; classes come in sorted order and are called
            as here, with spaces for underscores.
        images: opens the keys.
        options: further arguments of `Task`.

    Raises:
        ValueError: what `Task` raises.
    """
    classes = sorted({each for split in splits.values() for each, keys in split.items() if keys})
    tables = {}
    for split in SPLITS:
        label_of = {key: label for label, each in enumerate(classes) for key in sorted(splits[split].get(each, []))}
        tables[split] = _rows(images, task_id, label_of)
    return Task(name=name, class_names=tuple(each.replace("_", " ") for each in classes), **tables, **options)


def keys_of(classes: Mapping[str, list[str]]) -> list[str]:
    """All keys of one split, sorted: what a manifest lists."""
    return sorted(key for keys in classes.values() for key in keys)


def _rows(images: Images, task_id: int, label_of: Mapping[str, int]) -> datasets.Dataset:
    """`image` (decoded on access), `label`, `task_id` and `key`, in the order of `label_of`'s keys."""
    integer = datasets.Value("int64")
    features = {"image": images.feature, "label": integer, "task_id": integer, "key": datasets.Value("string")}
    columns = {
        "image": images.stored(list(label_of)),
        "label": list(label_of.values()),
        "task_id": [task_id] * len(label_of),
        "key": list(label_of),
    }
    return images.opened(datasets.Dataset.from_dict(columns, features=datasets.Features(features)))
