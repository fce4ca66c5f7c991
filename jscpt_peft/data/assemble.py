"""From what a source holds to a `Task`: class names, labels and the rows that a data loader reads."""

from __future__ import annotations

from collections.abc import Mapping

import datasets

from jscpt_peft.data.found import FoundTask, Images
from jscpt_peft.data.task import SPLITS, Task, check_names


def build_task(task_id: int, name: str, splits: FoundTask, images: Images, **options: str) -> Task:
    """The task of the chosen images: rows of `image` (decoded on access), `label`, `task_id` and `key`.

    `splits` has the keys of `train`, `validation`, `dev` and `test` by class. Classes come in sorted order and are
    called as there, with spaces for underscores. Raises what `Task` raises.
    """
    classes = sorted({each for split in splits.values() for each, keys in split.items() if keys})
    class_names = tuple(each.replace("_", " ") for each in classes)
    check_names(name, class_names)
    integer = datasets.Value("int64")
    label = datasets.ClassLabel(names=list(class_names)) if class_names else integer
    features = {"image": images.feature, "label": label, "task_id": integer, "key": datasets.Value("string")}
    tables = {}
    for split in SPLITS:
        label_of = {key: label for label, each in enumerate(classes) for key in sorted(splits[split].get(each, []))}
        columns = {
            "image": [images.place(key) for key in label_of],
            "label": list(label_of.values()),
            "task_id": [task_id] * len(label_of),
            "key": list(label_of),
        }
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        tables[split] = images.opened(table)
    return Task(name=name, class_names=class_names, **tables, **options)


def keys_of(classes: Mapping[str, list[str]]) -> list[str]:
    """All keys of one split, sorted: what a manifest lists."""
    return sorted(key for keys in classes.values() for key in keys)
