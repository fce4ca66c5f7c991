"""Parquet repositories: checked against what is known of them, and memory-mapped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import datasets

from jscpt_peft.data.benchmarks import HubTable

logger = logging.getLogger(__name__)

Tables = dict[str, datasets.Dataset]

Table = TypeVar("Table", datasets.Dataset, datasets.IterableDataset)

BYTES = (datasets.Value("binary"), datasets.Value("large_binary"))
TEXT = (datasets.Value("string"), datasets.Value("large_string"))
FRAME_COLUMNS = ("video_id", "clip_id", "frame")


def load_tables(place: HubTable, commit: str) -> Tables:
    """The splits of a repository that are of use: data sets on disk, never in memory.

    Raises a ValueError where a split or a column is missing or has another type; and what `datasets` raises where the
    repository cannot be reached and is not in the cache.
    """
    loaded = datasets.load_dataset(place.repository, revision=commit)
    missing = sorted(set(place.rows) - set(loaded))
    if missing:
        raise ValueError(f"{place.repository} has the splits {sorted(loaded)}, but {missing} expected.")
    tables = {}
    for split in (split for split in place.splits if split in loaded):
        tables[split] = with_images(place, loaded[split])
        # Where the Hub does not answer, `datasets` takes the newest copy, whichever commit is asked for.
        cached = Path(loaded[split].cache_files[0]["filename"]).parent.name
        if cached != commit:
            text = f"the cache holds {place.repository}@{cached}, not @{commit}"
            if datasets.config.HF_HUB_OFFLINE:
                raise FileNotFoundError(text)
            raise ConnectionError(f"the Hub did not give @{commit}, and {text}")
        compare_rows(place, split, len(tables[split]))
    return tables


def text_of(place: HubTable, column: str, names: list[str] | None, value: int | str | None, row: int) -> str:
    """What a cell of a column says, `names` being those that `column_names` gives."""
    if value is None or (names is not None and not 0 <= value < len(names)):
        raise ValueError(
            f"column {column!r} of {place.repository} holds {value} in row {row}: every image needs a label"
        )
    return value if names is None else names[value]


def column_names(features: datasets.Features, column: str) -> list[str] | None:
    """What the integers of a column of class labels stand for; None for a column of strings."""
    return features[column].names if isinstance(features[column], datasets.ClassLabel) else None


def with_images(place: HubTable, table: Table) -> Table:
    """`table` after a look at its columns; bytes without a word about what they are become images.

    Raises a ValueError where a column is missing or has another type.
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


def compare_rows(place: HubTable, split: str, rows: int) -> None:
    """Warns in one sentence where a split does not have as many rows as are published."""
    published = place.rows.get(split, rows)
    if abs(rows - published) > place.tolerance * published:
        logger.warning(
            "%s has %d rows in %r, %d are published: accuracies on it cannot be compared with published ones.",
            place.repository,
            rows,
            split,
            published,
        )
