"""Batches with every task in every batch; every batch, and every augmentation, a pure function of its number."""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from jscpt_peft.data.files import UNREADABLE, OpensImages, open_image
from jscpt_peft.data.task import check_names, first_difference, named_classes
from jscpt_peft.data.transforms import ImageTransform, to_rgb

if TYPE_CHECKING:  # takes seconds to import
    import datasets

Key = tuple[int, int]


@lru_cache(maxsize=64)
def _shuffled(size: int, seed: int, epoch: int, task: int, cycle: int) -> tuple[int, ...]:
    order = list(range(size))
    # a string seed goes through SHA-512: the same everywhere, and unrelated for neighbouring numbers
    random.Random(f"{seed}/{epoch}/{task}/{cycle}").shuffle(order)
    return tuple(order)


class TaskBalancedBatchSampler(torch.utils.data.Sampler[list[Key]]):
    """Batches of keys with `batch_size` items of every task, task after task.

    An epoch is one pass over the largest task; shorter tasks are re-shuffled and cycle, and the last batch is filled
    in the same way, so that every batch is full. Rank r of K takes the r-th part of what one process with
    K * batch_size would take. It shards by itself: do not shard it again.

    A key is (index into the concatenation of the tasks, draw); `draw` is unique to that draw in the whole run and
    seeds the augmentation in `ImageTaskDataset`.

    Args:
        sizes: number of items of each task.
        batch_size: items per task, process and batch.
        seed: of the shuffling.
        rank, world_size: this process and the number of processes.
        accumulation: batches of one optimizer step. An epoch is made of whole steps, so that a step of 2 batches of B
            items sees what a step of one batch of 2·B sees.

    Raises:
        ValueError: no task, an empty task, `batch_size` below 1, `rank` out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"`sizes` is {list(sizes)}: give at least one task, and no empty one.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}: give the images per task and process, at least 1.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` is {rank}: with `world_size` {world_size} it is 0 to {world_size - 1}.")
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.epoch = 0
        self._starts = (0, *itertools.accumulate(self.sizes))

    def set_epoch(self, epoch: int) -> None:
        """Iterate over the batches of `epoch` from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        steps = math.ceil(max(self.sizes) / (self.batch_size * self.world_size * self.accumulation))
        return steps * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch  # a set_epoch during the iteration counts from the next one on
        return (self.batch(number, epoch) for number in range(len(self)))

    def batch(self, number: int, epoch: int = 0) -> list[Key]:
        """Batch `number` of `epoch`: a pure function of these, the seed and the sizes.

        `number` may exceed `len(self)`: then all tasks cycle on, which gives an endless stream of batches.
        """
        per_batch = self.batch_size * self.world_size
        first = number * per_batch + self.rank * self.batch_size
        keys = []
        for task, size in enumerate(self.sizes):
            for position in range(first, first + self.batch_size):
                cycle, offset = divmod(position, size)
                index = self._starts[task] + _shuffled(size, self.seed, epoch, task, cycle)[offset]
                keys.append((index, epoch * len(self) * per_batch + position))
        return keys


class ImageTaskDataset(torch.utils.data.Dataset):
    """The concatenation of the tasks' data sets, as what `collate` takes.

    Args:
        datasets: one split of every task, as `TaskSet.split` gives it.
        transform: as `image_transform` gives it; called in the data loader's workers.
        seed: of the augmentation, which is a pure function of (seed, key).
        corrupt: what happens to an RGB image before the transform, as `corrupt(image, key=...)`; `key` is the row's,
            or its index where rows have none.
        task_ids: the model's task that each data set belongs to, where these are not all of the model's tasks in
            their order; `None`: the rows' own.
        class_names: class names of each data set in the order of its labels, by task as `TaskSet.class_names` gives
            them, or in a list; `None`: those that the data sets' labels bear as `datasets.ClassLabel`, if they do.
            The trainer compares them, and the names of tasks, with the model's.
        jpeg_side: as of `files.open_image`; keep well above the size that the transform gives. A data set with a
            transform of your own opens its images itself.

    Attributes:
        class_names: class names of each data set; `None` in the place of those that nobody has named.
        task_names: the data sets' tasks, where `class_names` tells them.

    Raises:
        TypeError: a name is no string.
        ValueError: some of the data sets have a `group` column and some have not, `task_ids` or `class_names` are not
            one each, or a data set's own class names are others.
        OSError: on access, naming an image that cannot be read.
    """

    def __init__(
        self,
        datasets: Sequence[datasets.Dataset],
        transform: ImageTransform,
        seed: int = 0,
        corrupt: Callable[..., Image.Image] | None = None,
        task_ids: Sequence[int] | None = None,
        class_names: Mapping[str, Sequence[str]] | Sequence[Sequence[str] | None] | None = None,
        jpeg_side: int | None = None,
    ) -> None:
        if not datasets:
            raise ValueError("`datasets` is empty: give one of every task.")
        grouped = ["group" in dataset.column_names for dataset in datasets]
        if any(grouped) and not all(grouped):
            raise ValueError(
                f"`datasets` number {grouped.index(False)} has no column `group`, number {grouped.index(True)} has: "
                "give all of them groups or none."
            )
        if task_ids is not None and (len(set(task_ids)) != len(datasets) or len(task_ids) != len(datasets)):
            raise ValueError(
                f"`task_ids` is {list(task_ids)} for {len(datasets)} data sets: give each an id of its own."
            )
        self.datasets = tuple(_opened_with(jpeg_side, dataset) for dataset in datasets)
        self.class_names = _class_names(datasets, class_names)
        self.task_names = tuple(class_names) if isinstance(class_names, Mapping) else None
        self.transform = transform
        self.seed = seed
        self.corrupt = corrupt
        self.jpeg_side = jpeg_side
        self.task_ids = None if task_ids is None else tuple(task_ids)
        self.has_groups = any(grouped)
        self._ends = tuple(itertools.accumulate(self.sizes))

    @property
    def sizes(self) -> list[int]:
        """Number of images of each of the data sets."""
        return [len(dataset) for dataset in self.datasets]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, key: int | Key) -> dict[str, Tensor | int]:
        """The item with an index (draw 0) or a key of `TaskBalancedBatchSampler`: `pixel_values`, `labels`, ..."""
        index, draw = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        position = bisect_right(self._ends, index)
        dataset = self.datasets[position]
        row = _read(dataset, index - (self._ends[position] - len(dataset)), self.jpeg_side)
        image = row["image"]
        if self.corrupt is not None:
            image = self.corrupt(image, key=str(row.get("key", index)))
        item = {
            "pixel_values": self.transform(image, random.Random(f"{self.seed}/{index}/{draw}")),
            "labels": row["label"],
            "task_ids": row["task_id"] if self.task_ids is None else self.task_ids[position],
        }
        return {**item, "groups": row["group"]} if self.has_groups else item


def _class_names(
    datasets: Sequence[datasets.Dataset], given: Mapping[str, Sequence[str]] | Sequence[Sequence[str] | None] | None
) -> tuple[list[str] | None, ...]:
    own = [named_classes(dataset) for dataset in datasets]
    if given is None:
        return tuple(own)
    if len(given) != len(datasets):
        raise ValueError(f"`class_names` has {len(given)} lists for {len(datasets)} data sets: give one each.")
    found = []
    named = given.items() if isinstance(given, Mapping) else ((f"number {n}", each) for n, each in enumerate(given))
    for (task, names), known in zip(named, own, strict=True):
        if names is not None:
            check_names(task, names)
        if None not in (names, known) and list(names) != known:
            raise ValueError(
                f"`class_names` of task {task!r} are not those of its data set "
                f"({first_difference(names, known)}): give the names in the order of its labels."
            )
        found.append(known if names is None else list(names))
    return tuple(found)


def _opened_with(jpeg_side: int | None, dataset: datasets.Dataset) -> datasets.Dataset:
    """`dataset` with files for images where it would decode them itself, in whatever format and of whatever size.

    One of ours, which opens its images by `OpensImages`, does so with this `jpeg_side`.
    """
    image, form = dataset.features.get("image"), dataset.format
    if getattr(image, "decode", False) and form["type"] is None:
        return dataset.cast_column("image", type(image)(decode=False))
    opens = form["format_kwargs"].get("transform")
    if isinstance(opens, OpensImages) and opens.jpeg_side != jpeg_side:  # it is hashed anew
        return dataset.with_transform(replace(opens, jpeg_side=jpeg_side), form["columns"], form["output_all_columns"])
    return dataset


def _read(dataset: datasets.Dataset, index: int, jpeg_side: int | None) -> dict:
    try:
        row = dataset[index]
        image = row["image"]
        if isinstance(image, dict):
            image = open_image(image["bytes"] or image["path"], jpeg_side)
        return {**row, "image": to_rgb(image)}
    except UNREADABLE as error:
        stored = dataset.with_format("arrow")[index].to_pylist()[0]
        path = (stored.get("image") or {}).get("path")
        raise OSError(
            f"image {path or stored.get('key', index)!r} cannot be read ({error}): repair it, remove it, or load the "
            "task set with `skip_bad_images=True`."
        ) from error


def collate(examples: Sequence[dict[str, Tensor | int]]) -> dict[str, Tensor]:
    """Stacks items of `ImageTaskDataset`: pixel_values [B, 3, S, S] float32; labels, task_ids, groups [B] int64.

    Raises:
        ValueError: an item has no `pixel_values`, or something else than a whole number in another place.
    """
    if any("pixel_values" not in example for example in examples):
        raise ValueError("an item of the data set has no `pixel_values`: use `ImageTaskDataset`, or add them.")
    batch = {
        name: torch.tensor([_whole(name, example.get(name)) for example in examples])
        for name in ("labels", "task_ids", "groups")
        if name in examples[0]
    }
    return {"pixel_values": torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples]), **batch}


def _whole(name: str, value: object) -> int:
    try:
        if int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):  # as of None, NaN and infinity
        pass
    raise ValueError(f"`{name}` of an item of the data set is {value!r}: give a whole number.")
