"""Any map-style data set as one whose items stand task after task, as `TaskBalancedBatchSampler` draws them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from jscpt_peft.data.batches import ImageTaskDataset, Key
from jscpt_peft.data.task import read_column

COLUMNS = ("pixel_values", "labels", "task_ids")


class ByTask(Dataset):
    """A data set whose items are what `collate` takes, in the order of their tasks.

    Args:
        dataset: `dataset[index]` gives `pixel_values`, `labels` and `task_ids`: a `Subset` or a `ConcatDataset` of
            `ImageTaskDataset`s, a Hugging Face data set, or one's own.

    Attributes:
        task_ids: the model's tasks that there are items of.
        sizes: number of items of each of them.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        ids = task_ids_of(dataset)
        counts = sorted(Counter(ids).items())
        self.task_ids, self.sizes = tuple(task for task, _ in counts), [count for _, count in counts]
        self._order = sorted(range(len(ids)), key=ids.__getitem__)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        index, draw = key if isinstance(key, tuple) else (key, 0)
        return _item(self.dataset, self._order[index], draw)


def by_task(argument: str, dataset: Any) -> Any:
    """The data set itself if it has `sizes`, as an `ImageTaskDataset`; else `ByTask` of it.

    Args:
        argument: what an error calls it.
        dataset: of a trainer; `None` stays `None`.

    Raises:
        TypeError: it has no length or no index, as an `IterableDataset`.
        ValueError: its items lack what a batch needs.
    """
    if dataset is None or hasattr(dataset, "sizes"):
        return dataset
    check_map_style(argument, dataset)
    if len(dataset) and not isinstance(dataset[0], Mapping):
        raise ValueError(
            f"`{argument}` has items of type {type(dataset[0]).__name__}: give mappings of {list(COLUMNS)}."
        )
    missing = [name for name in COLUMNS if len(dataset) and name not in dataset[0]]
    if missing:
        raise ValueError(
            f"`{argument}` has items of {sorted(dataset[0])}, and {missing} are missing: set a transform that makes "
            f"{list(COLUMNS)}, or use `ImageTaskDataset`."
        )
    return ByTask(dataset)


def check_map_style(argument: str, dataset: Any) -> None:
    """Raises a `TypeError` where a data set cannot be read in any order."""
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"`{argument}` is {type(dataset).__name__}, which can be read in its own order alone, but every batch "
            "takes images of all tasks: give a map-style data set, such as `datasets.Dataset.from_generator(...)`."
        )


def parts_of(dataset: Any) -> Iterator[Any]:
    """What a data set is put together of: `ImageTaskDataset`s, Hugging Face data sets, or others; or it itself."""
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from parts_of(part)
    elif isinstance(dataset, (Subset, ByTask)):
        yield from parts_of(dataset.dataset)
    else:
        yield dataset


def task_ids_of(dataset: Any) -> list[int]:
    """The task of every item, without reading images where that is possible."""
    if isinstance(dataset, Subset):
        ids = task_ids_of(dataset.dataset)
        return [ids[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [task for part in dataset.datasets for task in task_ids_of(part)]
    if isinstance(dataset, ImageTaskDataset):
        if dataset.task_ids is None:
            return [task for part in dataset.datasets for task in read_column(part, "task_id")]
        return [task for task, size in zip(dataset.task_ids, dataset.sizes, strict=True) for _ in range(size)]
    for name in ("task_ids", "task_id"):
        if name in getattr(dataset, "column_names", ()):
            return read_column(dataset, name)
    return [int(dataset[index]["task_ids"]) for index in range(len(dataset))]


def _item(dataset: Any, index: int, draw: int) -> dict[str, Any]:
    """An item; where augmentation is a function of the draw, that of this draw."""
    if isinstance(dataset, Subset):
        return _item(dataset.dataset, dataset.indices[index], draw)
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        return _item(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0), draw)
    return dataset[index, draw] if isinstance(dataset, ImageTaskDataset) else dataset[index]
