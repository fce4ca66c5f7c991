"""What a source of images turns out to hold: keys by task, split and class; how to open them; and `Task`s of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
from PIL import Image

from jscpt_peft.data.files import UNREADABLE, OpensImages, open_image
from jscpt_peft.data.task import SPLITS, Task, check_names
from jscpt_peft.data.transforms import to_rgb

logger = logging.getLogger(__name__)

POOL = "pool"
"""The split of a task that has none: its images are to be split here."""

FoundTask = dict[str, dict[str, list[str]]]
"""Split (`train`, `validation`, `test` or `POOL`) -> class -> keys."""


class Images:
    """How the images of a source are stored in a column, here as files, and opened from there on access."""

    feature: datasets.Image | dict = datasets.Image(decode=False)

    def place(self, key: str) -> dict:
        """What the column holds for a key."""
        raise NotImplementedError

    @staticmethod  # data sets copy and hash what opens their images at every turn: nothing of `self` with it
    def image(place: dict, jpeg_side: int | None = None) -> Image.Image:
        """The image in a place; `jpeg_side` as of `open_image`."""
        return open_image(place["path"] if place["bytes"] is None else place["bytes"], jpeg_side)

    def opened(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """`dataset` with a column `image` of places as one of images."""
        return dataset.with_transform(OpensImages(self.image), columns=["image"], output_all_columns=True)


@dataclass(frozen=True)
class FilesOnDisk(Images):
    """Keys are paths relative to `root`."""

    root: Path

    def place(self, key: str) -> dict:
        return {"path": str(self.root.absolute() / key), "bytes": None}


@dataclass(frozen=True)
class RowsOfTables(Images):
    """Keys are `<split>/<row>` of memory-mapped tables.

    Args:
        tables: split -> data set with a column `image` of files' bytes.
        places: split -> row's number, as in the key, -> its place in the table, for tables that hold a selection.
    """

    tables: Mapping[str, datasets.Dataset]
    places: Mapping[str, Mapping[int, int]]
    feature = {"split": datasets.Value("string"), "row": datasets.Value("int64")}  # noqa: RUF012 (a constant)

    def place(self, key: str) -> dict:
        split, _, number = key.rpartition("/")
        row = int(number)
        return {"split": split, "row": self.places[split][row] if split in self.places else row}

    def __deepcopy__(self, _memo: dict) -> RowsOfTables:
        return self  # data sets copy it whenever their format changes

    def image(self, place: dict, jpeg_side: int | None = None) -> Image.Image:
        stored = self.tables[place["split"]][place["row"]]["image"]["bytes"]
        if stored is None:  # the path of a file on this machine, or on another
            raise OSError("the table does not hold it")
        return open_image(stored, jpeg_side)


def without_unreadable(found: Mapping[str, FoundTask], images: Images, place: object) -> dict[str, FoundTask]:
    """Decodes every image once and leaves out those that cannot be read, which the log names."""
    bad: list[str] = []

    def readable(key: str) -> bool:
        try:
            to_rgb(images.image(images.place(key)))
        except UNREADABLE:
            bad.append(key)
            return False
        return True

    kept = {
        task: {
            split: {name: [key for key in keys if readable(key)] for name, keys in classes.items()}
            for split, classes in splits.items()
        }
        for task, splits in found.items()
    }
    if bad:
        logger.warning("Skipped %d unreadable images below %s: %s.", len(bad), place, ", ".join(bad))
    return kept


class Source(NamedTuple):
    """One data set as it was found.

    Attributes:
        tasks: task name -> its images.
        images: opens their keys.
        origin: what it was read from, for messages and the manifest.
    """

    tasks: Mapping[str, FoundTask]
    images: Images
    origin: str


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
