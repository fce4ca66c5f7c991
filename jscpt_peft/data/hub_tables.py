"""Parquet repositories: checked against what is known of them, and kept on disk, never in memory.

Repositories many times as large as what is of use in them are read once, file by file, keeping only that. What is kept
of each file is a data set of its own in Hugging Face's cache. A download that breaks off goes on at the file where it
broke, and a later run, also one without network, reads nothing again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import datasets
import pyarrow as pa

from jscpt_peft.data.benchmarks import Benchmark, HubTable, plain
from jscpt_peft.data.task import read_column

logger = logging.getLogger(__name__)

Tables = dict[str, datasets.Dataset]

Table = TypeVar("Table", datasets.Dataset, datasets.IterableDataset)

BYTES = (datasets.Value("binary"), datasets.Value("large_binary"))
TEXT = (datasets.Value("string"), datasets.Value("large_string"))
FRAME_COLUMNS = ("video_id", "clip_id", "frame")
FORMAT = 2  # of the copies on disk: a change of what is kept makes new ones
NUMBER = {"number": datasets.Value("int64")}


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


def streamed_tables(benchmark: Benchmark, place: HubTable, commit: str) -> tuple[Tables, dict[str, dict[int, int]]]:
    """What is of use in a repository: data sets on disk, never in memory. Raises what `load_tables` does.

    Returns:
        The tables by split, which hold a selection of the rows; and, by split, the row's number in the repository ->
        its place in the table.
    """
    tables, places = {}, {}
    for split in place.splits:
        tables[split], rows = _selection(benchmark, place, commit, split)
        places[split] = {row: position for position, row in enumerate(rows)}
    return tables, places


def _selection(benchmark: Benchmark, place: HubTable, commit: str, split: str) -> tuple[datasets.Dataset, list[int]]:
    """The rows of a split that are of use, and their numbers in it."""
    name = f"{benchmark.name}-{commit}-{split}-{FORMAT}"
    stream = cache(partial(_stream, benchmark, place, commit, split))  # nothing is asked of the Hub where all is kept
    counted = _kept(f"{name}-files", NUMBER, lambda: iter([{"number": stream().num_shards}]))
    middle = None
    if place.middle_frame:
        frames = _kept(f"{name}-middle", NUMBER, partial(_middle_frames, place, commit, split))
        middle = set(read_column(frames, "number"))
    texts = {column: datasets.Value("string") for column in (place.label, place.domain) if column}
    features = {"image": datasets.Image(), **texts, "row": datasets.Value("int64")}
    tables, numbers, first = [], [], 0
    for file in range(*read_column(counted, "number")):
        read = partial(_rows_of_use, benchmark, place, stream, file, first, middle)
        kept = _kept(f"{name}-{facts_of_selection(benchmark, place)}-{file}", features, read)
        *rows, count = read_column(kept, "row")
        tables.append(kept.select(range(len(rows))))
        numbers += [first + row for row in rows]
        first += count
    compare_rows(place, split, first)
    return datasets.concatenate_datasets(tables), numbers


def _kept(name: str, features: Mapping, rows: Callable[[], Iterator[dict]]) -> datasets.Dataset:
    """The copy in Hugging Face's cache that is called `name`; where there is none, it is made of `rows`."""
    return datasets.Dataset.from_generator(rows, features=datasets.Features(features), gen_kwargs={}, fingerprint=name)


def facts_of_selection(benchmark: Benchmark, place: HubTable) -> str:
    """Stands for all that decides which rows and columns are kept; other facts may change without a new download."""
    # where not all classes are named, a class is of use whatever it is called
    names = (benchmark.expected, benchmark.renamed) if benchmark.names_all_classes else ()
    facts = (place.repository, place.label, place.domain, place.middle_frame, benchmark.domains, benchmark.dropped)
    return hashlib.sha256(repr((facts, names)).encode()).hexdigest()[:12]


def _stream(benchmark: Benchmark, place: HubTable, commit: str, split: str) -> datasets.IterableDataset:
    """A split as it comes from the Hub, after a look at its columns and their names, with images as files' bytes."""
    stream = with_images(place, datasets.load_dataset(place.repository, revision=commit, split=split, streaming=True))
    _check_names(benchmark, place, stream.features)
    logger.warning(
        "%r of %s is read once, file by file (about %d rows); what %s needs of it is kept.",
        *(split, place.repository, place.rows[split], benchmark.name),
    )
    return stream.cast_column("image", datasets.Image(decode=False))


def _rows_of_use(
    benchmark: Benchmark,
    place: HubTable,
    stream: Callable[[], datasets.IterableDataset],
    file: int,
    first: int,
    middle: set[int] | None,
) -> Iterator[dict]:
    """Those of one of a split's files, by their numbers in it; and a last row with the number of all its rows.

    `first` is the number of the file's first row in the split; unless `middle` is None, only rows in it are of use.
    """
    split = stream()
    columns = {name: column_names(split.features, name) for name in (place.label, place.domain) if name}
    domains = {plain(domain) for domain in benchmark.domains.values()}
    count = 0
    for row, example in enumerate(split.shard(split.num_shards, file)):
        count += 1
        if middle is not None and first + row not in middle:
            continue
        texts = {name: text_of(place, name, names, example[name], first + row) for name, names in columns.items()}
        if place.domain and plain(texts[place.domain]) not in domains:
            continue
        if benchmark.class_name(texts[place.label]) is not None:
            yield {"image": example["image"], **texts, "row": row}
    # Every file leaves a row: a copy without one cannot be read, and all of a file's rows may be of other domains.
    yield {"image": None, **dict.fromkeys(columns), "row": count}


def _check_names(benchmark: Benchmark, place: HubTable, features: datasets.Features) -> None:
    """Finds out before the download, where labels are named in the table's head, whether they are the benchmark's."""
    classes = {benchmark.class_name(name) for name in column_names(features, place.label) or ()} - {None}
    if classes and len(classes) != benchmark.num_classes:
        raise ValueError(f"{place.repository} has {len(classes)} classes, but {benchmark.num_classes} expected.")
    domains = column_names(features, place.domain) if place.domain else None
    there = {plain(name) for name in domains or benchmark.domains.values()}
    if missing := [domain for domain in benchmark.domains.values() if plain(domain) not in there]:
        raise ValueError(f"{place.repository} has the domains {domains}, but {missing} expected.")


def _middle_frames(place: HubTable, commit: str, split: str) -> Iterator[dict[str, int]]:
    """Rows of the frame in the middle of each clip; the images are not read for it."""
    options = {"revision": commit, "split": split, "streaming": True, "columns": list(FRAME_COLUMNS)}
    stream = datasets.load_dataset(place.repository, **options).with_format("arrow")
    frames = pa.concat_tables(stream.iter(batch_size=10_000)).to_pandas(strings_to_categorical=True)
    clips = frames.sort_values("frame").groupby(["video_id", "clip_id"], observed=True)["frame"]
    yield from ({"number": row} for _, rows in clips for row in [int(rows.index[len(rows) // 2])])
