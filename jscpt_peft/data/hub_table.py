"""Parquet repositories: checked against what is known of them, memory-mapped, and streamed where they are huge."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import datasets
import numpy as np

from jscpt_peft.data.benchmark import Benchmark, HubTable
from jscpt_peft.data.class_names import class_name
from jscpt_peft.data.task import read_column

logger = logging.getLogger(__name__)

Tables = dict[str, datasets.Dataset]
Places = dict[str, dict[int, int]]

TEXT = (datasets.Value("string"), datasets.Value("large_string"))
FRAME_COLUMNS = ("video_id", "clip_id", "frame")


def load_tables(benchmark: Benchmark, place: HubTable, revision: str | None) -> tuple[Tables, Places]:
    """The splits of a repository that are of use: data sets on disk, never in memory.

    Args:
        benchmark: the data set.
        place: where it is.
        revision: branch, tag or commit; None for the newest.

    Returns:
        The tables by split. Where a repository is streamed, they hold a selection of its rows; then, by split, the
        row's number in the repository -> its place in the table.

    Raises:
        OSError, datasets.exceptions.DatasetsError: it cannot be reached and is not in the cache.
        ValueError: a split or a column is missing, or has another type.
    """
    if place.streamed:
        return _streamed_tables(benchmark, place, revision)
    loaded = datasets.load_dataset(place.repository, revision=revision)
    tables = {split: loaded[split] for split in place.splits if split in loaded}
    _check_splits(place, tables, loaded)
    for split, table in tables.items():
        _check_columns(place, table.features)
        _compare_rows(place, split, len(table))
    return tables, {}


def column_names(features: datasets.Features, column: str) -> list[str] | None:
    """What the integers of a column of class labels stand for; None for a column of strings."""
    return features[column].names if isinstance(features[column], datasets.ClassLabel) else None


def _check_splits(place: HubTable, found: Mapping, there: Mapping) -> None:
    missing = sorted(set(place.rows) - set(found))
    if missing:
        raise ValueError(f"{place.repository} has the splits {sorted(there)}, but {missing} expected.")


def _check_columns(place: HubTable, features: datasets.Features) -> None:
    names = [name for name in (place.label, place.domain) if name]
    frames = FRAME_COLUMNS if place.middle_frame else ()
    missing = [name for name in ("image", *names, *frames) if name not in features]
    if missing:
        raise ValueError(f"{place.repository} has the columns {sorted(features)}, but {missing} expected.")
    if not isinstance(features["image"], datasets.Image):
        raise ValueError(f"column 'image' of {place.repository} is {features['image']}, expected images.")
    for name in names:
        kind = features[name]
        if not (
            isinstance(kind, datasets.ClassLabel) or kind in (datasets.Value("string"), datasets.Value("large_string"))
        ):
            raise ValueError(f"column {name!r} of {place.repository} is {kind}, expected class labels or strings.")


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


def _streamed_tables(benchmark: Benchmark, place: HubTable, revision: str | None) -> tuple[Tables, Places]:
    tables, places = {}, {}
    for split in place.splits:
        table = datasets.Dataset.from_generator(
            _selection,
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    **{name: datasets.Value("string") for name in (place.label, place.domain) if name},
                    "row": datasets.Value("int64"),
                }
            ),
            gen_kwargs={"benchmark": benchmark, "place": place, "revision": revision, "split": split},
            # The name of the copy in Hugging Face's cache: a second run finds it, also without network.
            fingerprint=f"{benchmark.name}-{place.repository.replace('/', '--')}-{revision or 'main'}-{split}",
        )
        tables[split] = table
        places[split] = {row: position for position, row in enumerate(read_column(table, "row"))}
    return tables, places


def _selection(benchmark: Benchmark, place: HubTable, revision: str | None, split: str) -> Iterator[dict]:
    """The rows of a split that are of use, with images as their files' bytes."""
    stream = datasets.load_dataset(place.repository, revision=revision, split=split, streaming=True)
    _check_columns(place, stream.features)
    kept = _middle_frames(place, revision, split) if place.middle_frame else None
    domains = {domain.lower() for domain in benchmark.domains.values()}
    names = {name: column_names(stream.features, name) for name in (place.label, place.domain) if name}
    row = -1
    for row, example in enumerate(stream.cast_column("image", datasets.Image(decode=False))):
        if kept is not None and row not in kept:
            continue
        texts = {name: labels[example[name]] if labels else example[name] for name, labels in names.items()}
        if place.domain and texts[place.domain].lower() not in domains:
            continue
        if class_name(benchmark, texts[place.label]) is not None:
            yield {"image": example["image"], **texts, "row": row}
    _compare_rows(place, split, row + 1)


def _middle_frames(place: HubTable, revision: str | None, split: str) -> set[int]:
    """Rows of the frame in the middle of each clip; the images are not read for it."""
    columns = list(FRAME_COLUMNS)
    stream = datasets.load_dataset(
        place.repository, revision=revision, split=split, streaming=True, columns=columns
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
