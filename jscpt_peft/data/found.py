"""What a source of images turns out to hold: keys by task, split and class, and how to open what a key names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
from PIL import Image

from jscpt_peft.data.transforms import UNREADABLE, to_rgb

logger = logging.getLogger(__name__)

POOL = "pool"
"""The split of a task that has none: its images are to be split here."""

FoundTask = dict[str, dict[str, list[str]]]
"""Split (`train`, `validation`, `test` or `POOL`) -> class -> keys."""


# How the images of a source are stored in a column (`feature`, `stored`), opened from a data set (`opened`) and one by
# one (`open`): FilesOnDisk or RowsOfTables. No image is ever held in memory.


@dataclass(frozen=True)
class FilesOnDisk:
    """Keys are paths relative to `root`."""

    root: Path
    feature = datasets.Image()

    def stored(self, keys: Sequence[str]) -> list[str]:
        return [str(self.root.absolute() / key) for key in keys]

    def opened(self, dataset: datasets.Dataset) -> datasets.Dataset:
        return dataset

    def open(self, key: str) -> Image.Image:
        return self.feature.decode_example({"path": str(self.root / key), "bytes": None})


@dataclass(frozen=True)
class RowsOfTables:
    """Keys are `<split>/<row>` of memory-mapped tables.

    Args:
        tables: split -> data set with a column `image`.
        places: split -> row's number, as in the key, -> its place in the table, for tables that hold a selection.
    """

    tables: Mapping[str, datasets.Dataset]
    places: Mapping[str, Mapping[int, int]]
    feature = {"split": datasets.Value("string"), "row": datasets.Value("int64")}  # noqa: RUF012 (a constant)

    def stored(self, keys: Sequence[str]) -> list[dict]:
        return [self._place(key) for key in keys]

    def opened(self, dataset: datasets.Dataset) -> datasets.Dataset:
        return dataset.with_transform(self._read, columns=["image"], output_all_columns=True)

    def open(self, key: str) -> Image.Image:
        return self._image(self._place(key))

    def _place(self, key: str) -> dict:
        split, _, number = key.rpartition("/")
        row = int(number)
        return {"split": split, "row": self.places[split][row] if split in self.places else row}

    def _read(self, batch: dict[str, list]) -> dict[str, list]:
        """The transform of the data sets; `batch` is empty where `image` was not selected."""
        return {name: [self._image(place) for place in places] for name, places in batch.items()}

    def _image(self, place: dict) -> Image.Image:
        return self.tables[place["split"]][place["row"]]["image"]


Images = FilesOnDisk | RowsOfTables


def without_unreadable(found: Mapping[str, FoundTask], images: Images, place: object) -> dict[str, FoundTask]:
    """Decodes every image once and leaves out those that cannot be read, which the log names."""
    bad: list[str] = []

    def readable(key: str) -> bool:
        try:
            to_rgb(images.open(key))
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
