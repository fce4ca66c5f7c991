"""Parquet repositories: checked against what is known of them, memory-mapped, and streamed where they are huge."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np

from jscpt_peft.data.benchmark import Benchmark, HubTable
from jscpt_peft.data.class_names import class_name, plain
from jscpt_peft.data.task import read_column

logger = logging.getLogger(__name__)

Tables = dict[str, datasets.Dataset]
Places = dict[str, dict[int, int]]

Table = TypeVar("Table", datasets.Dataset, datasets.IterableDataset)

FORMAT = 1  # of the copies on disk: a change of what is kept makes new ones
BYTES = (datasets.Value("binary"), datasets.Value("large_binary"))
TEXT = (datasets.Value("string"), datasets.Value("large_string"))
FRAME_COLUMNS = ("video_id", "clip_id", "frame")


def load_tables(benchmark: Benchmark, place: HubTable, commit: str) -> tuple[Tables, Places]:
    """The splits of a repository that are of use: data sets on disk, never in memory.

    Args:
        benchmark: the data set.
        place: where it is.
        commit: of the repository.

    Returns:
        The tables by split. Where a repository is streamed, they hold a selection of its rows; then, by split, the
        row's number in the repository -> its place in the table.

    Raises:
        OSError, datasets.exceptions.DatasetsError: it cannot be reached and is not in the cache.
        ValueError: a split or a column is missing, or has another type.
    """
    if place.streamed:
        return _streamed_tables(benchmark, place, commit)
    loaded = datasets.load_dataset(place.repository, revision=commit)
    missing = sorted(set(place.rows) - set(loaded))
    if missing:
        raise ValueError(f"{place.repository} has the splits {sorted(loaded)}, but {missing} expected.")
    tables = {}
    for split in (split for split in place.splits if split in loaded):
        tables[split] = with_images(place, loaded[split])
        # Without network `datasets` takes the newest copy, whichever commit is asked for.
        cached = Path(loaded[split].cache_files[0]["filename"]).parent.name
        if cached != commit:
            raise FileNotFoundError(f"the cache holds {place.repository}@{cached}, not @{commit}")
        _compare_rows(place, split, len(tables[split]))
    return tables, {}


def column_names(features: datasets.Features, column: str) -> list[str] | None:
    """What the integers of a column of class labels stand for; None for a column of strings."""
    return features[column].names if isinstance(features[column], datasets.ClassLabel) else None


def with_images(place: HubTable, table: Table) -> Table:
    """`table` after a look at its columns; bytes without a word about what they are become images.

    Raises:
        ValueError: a column is missing or has another type.
    """
    features = table.features
    names = [name for name in (place.label, place.domain) if name]
    frames = FRAME_COLUMNS if place.middle_frame else ()
    missing = [name for name in ("image", *names, *frames) if name not in features]
    if missing:
        raise ValueError(f"{place.repository} has the columns {sorted(features)}, but {missing} expected.")
    for name in names:
        kind = features[name]
        if not isinstance(kind, datasets.ClassLabel) and kind not in TEXT:
            raise ValueError(f"column {name!r} of {place.repository} is {kind}, expected class labels or strings.")
    image = features["image"]
    if image in BYTES or (isinstance(image, dict) and set(image) == {"bytes", "path"}):
        return table.cast_column("image", datasets.Image())
    if not isinstance(image, datasets.Image):
        raise ValueError(f"column 'image' of {place.repository} is {image}, expected images.")
    return table


def _compare_rows(place: HubTable, split: str, rows: int) -> None:
    published = place.rows.get(split, rows)
    if abs(rows - published) > place.tolerance * published:
        logger.warning(
            "%s has %d rows in %r, %d are published: accuracies on it cannot be compared with published ones.",
            place.repository,
            rows,
            split,
            published,
        )


# ---- streaming ------------------------------------------------------------------------------------------------------


def _streamed_tables(benchmark: Benchmark, place: HubTable, commit: str) -> tuple[Tables, Places]:
    tables, places = {}, {}
    texts = {name: datasets.Value("string") for name in (place.label, place.domain) if name}
    facts = hashlib.sha256(repr((FORMAT, benchmark)).encode()).hexdigest()[:12]
    for split in place.splits:
        tables[split] = datasets.Dataset.from_generator(
            _selection,
            features=datasets.Features({"image": datasets.Image(), **texts, "row": datasets.Value("int64")}),
            gen_kwargs={"benchmark": benchmark, "place": place, "commit": commit, "split": split},
            # The name of the copy in Hugging Face's cache: a second run finds it, also without network.
            fingerprint=f"{benchmark.name}-{commit}-{split}-{facts}",
        )
        places[split] = {row: position for position, row in enumerate(read_column(tables[split], "row"))}
    return tables, places


def _selection(benchmark: Benchmark, place: HubTable, commit: str, split: str) -> Iterator[dict]:
    """The rows of a split that are of use, with images as their files' bytes."""
    stream = with_images(place, datasets.load_dataset(place.repository, revision=commit, split=split, streaming=True))
    columns = {name: column_names(stream.features, name) for name in (place.label, place.domain) if name}
    _check_names(benchmark, place, columns)
    logger.warning(
        "%r of %s is read once (about %d rows); what %s needs of it is kept.",
        split,
        place.repository,
        place.rows[split],
        benchmark.name,
    )
    kept = _middle_frames(place, commit, split) if place.middle_frame else None
    domains = {plain(domain) for domain in benchmark.domains.values()}
    row = -1
    for row, example in enumerate(stream.cast_column("image", datasets.Image(decode=False))):
        if kept is not None and row not in kept:
            continue
        texts = {name: names[example[name]] if names else example[name] for name, names in columns.items()}
        if place.domain and plain(texts[place.domain]) not in domains:
            continue
        if class_name(benchmark, texts[place.label]) is not None:
            yield {"image": example["image"], **texts, "row": row}
    _compare_rows(place, split, row + 1)


def _check_names(benchmark: Benchmark, place: HubTable, columns: Mapping[str, list[str] | None]) -> None:
    """Finds out before the download, where labels are named in the table's head, whether they are the benchmark's."""
    if columns[place.label] is not None:
        classes = {class_name(benchmark, name) for name in columns[place.label]} - {None}
        if len(classes) != benchmark.num_classes:
            raise ValueError(f"{place.repository} has {len(classes)} classes, but {benchmark.num_classes} expected.")
    if place.domain and columns[place.domain] is not None:
        there = {plain(name) for name in columns[place.domain]}
        missing = [domain for domain in benchmark.domains.values() if plain(domain) not in there]
        if missing:
            raise ValueError(f"{place.repository} has the domains {columns[place.domain]}, but {missing} expected.")


def _middle_frames(place: HubTable, commit: str, split: str) -> set[int]:
    """Rows of the frame in the middle of each clip; the images are not read for it."""
    columns = list(FRAME_COLUMNS)
    stream = datasets.load_dataset(
        place.repository, revision=commit, split=split, streaming=True, columns=columns
    ).with_format("arrow")
    numbers: dict[tuple, int] = {}
    clips, frames = [], []
    for batch in stream.iter(batch_size=10_000):
        video, clip, frame = (batch[name].to_pylist() for name in columns)
        clips.append([numbers.setdefault(each, len(numbers)) for each in zip(video, clip, strict=True)])
        frames.append(frame)
    clips, frames = np.concatenate(clips), np.concatenate(frames)
    order = np.lexsort((frames, clips))  # by clip, then by frame
    first, count = np.unique(clips[order], return_index=True, return_counts=True)[1:]
    return set(order[first + count // 2].tolist())
