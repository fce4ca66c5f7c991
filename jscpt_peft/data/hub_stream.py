"""Repositories many times as large as what is of use in them: read once, file by file, keeping only that.

What is kept of each file is a copy of its own in Hugging Face's cache. A download that breaks off goes on at the file
where it broke, and a later run, also one without network, reads nothing again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import datasets
import numpy as np

from jscpt_peft.data.benchmark import Benchmark, HubTable
from jscpt_peft.data.class_names import class_name, plain
from jscpt_peft.data.hub_table import FRAME_COLUMNS, Tables, column_names, compare_rows, with_images
from jscpt_peft.data.task import read_column

logger = logging.getLogger(__name__)

Places = dict[str, dict[int, int]]

FORMAT = 2  # of the copies on disk: a change of what is kept makes new ones
NUMBER = {"number": datasets.Value("int64")}


def streamed_tables(benchmark: Benchmark, place: HubTable, commit: str) -> tuple[Tables, Places]:
    """What is of use in a repository: data sets on disk, never in memory.

    Args:
        benchmark: the data set.
        place: where it is.
        commit: of the repository.

    Returns:
        The tables by split, which hold a selection of the rows; and, by split, the row's number in the repository ->
        its place in the table.

    Raises:
        OSError, datasets.exceptions.DatasetsError: it cannot be reached and is not in the cache.
        ValueError: a column is missing or has another type, or the labels have other names.
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
    (files,) = read_column(counted, "number")
    middle = None
    if place.middle_frame:
        frames = _kept(f"{name}-middle", NUMBER, partial(_middle_frames, place, commit, split))
        middle = set(read_column(frames, "number"))
    texts = {column: datasets.Value("string") for column in (place.label, place.domain) if column}
    features = {"image": datasets.Image(), **texts, "row": datasets.Value("int64")}
    facts = facts_of_selection(benchmark, place)
    tables, numbers, first = [], [], 0
    for file in range(files):
        read = partial(_rows_of_use, benchmark, place, stream, file, first, middle)
        kept = _kept(f"{name}-{facts}-{file}", features, read)
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
    classes = None
    if benchmark.names_all_classes:  # otherwise a class is of use whatever it is called
        spelling = (sorted(benchmark.renamed.items()), benchmark.camel_case, benchmark.year_first)
        classes = (sorted(benchmark.expected), *spelling)
    domains = sorted(plain(domain) for domain in benchmark.domains.values())
    columns = (place.label, place.domain, place.middle_frame)
    facts = (place.repository, columns, domains, sorted(benchmark.dropped), classes)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _stream(benchmark: Benchmark, place: HubTable, commit: str, split: str) -> datasets.IterableDataset:
    """A split as it comes from the Hub, after a look at its columns and their names, with images as files' bytes."""
    stream = with_images(place, datasets.load_dataset(place.repository, revision=commit, split=split, streaming=True))
    _check_names(benchmark, place, stream.features)
    logger.warning(
        "%r of %s is read once, file by file (about %d rows); what %s needs of it is kept.",
        split,
        place.repository,
        place.rows[split],
        benchmark.name,
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

    Args:
        benchmark, place: what is of use.
        stream: the split.
        file: which of its files.
        first: the number of its first row in the split.
        middle: rows of the split with the middle frames of clips; None: all may be of use.
    """
    split = stream()
    columns = {name: column_names(split.features, name) for name in (place.label, place.domain) if name}
    domains = {plain(domain) for domain in benchmark.domains.values()}
    count = 0
    for row, example in enumerate(split.shard(split.num_shards, file)):
        count += 1
        if middle is not None and first + row not in middle:
            continue
        texts = {name: names[example[name]] if names else example[name] for name, names in columns.items()}
        if place.domain and plain(texts[place.domain]) not in domains:
            continue
        if class_name(benchmark, texts[place.label]) is not None:
            yield {"image": example["image"], **texts, "row": row}
    # Every file leaves a row: a copy without one cannot be read, and all of a file's rows may be of other domains.
    yield {"image": None, **dict.fromkeys(columns), "row": count}


def _check_names(benchmark: Benchmark, place: HubTable, features: datasets.Features) -> None:
    """Finds out before the download, where labels are named in the table's head, whether they are the benchmark's."""
    labels = column_names(features, place.label)
    if labels is not None:
        classes = {class_name(benchmark, name) for name in labels} - {None}
        if len(classes) != benchmark.num_classes:
            raise ValueError(f"{place.repository} has {len(classes)} classes, but {benchmark.num_classes} expected.")
    domains = place.domain and column_names(features, place.domain)
    if domains is not None:
        there = {plain(name) for name in domains}
        missing = [domain for domain in benchmark.domains.values() if plain(domain) not in there]
        if missing:
            raise ValueError(f"{place.repository} has the domains {domains}, but {missing} expected.")


def _middle_frames(place: HubTable, commit: str, split: str) -> Iterator[dict[str, int]]:
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
    yield from ({"number": row} for row in order[first + count // 2].tolist())
