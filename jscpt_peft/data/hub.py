"""Benchmarks on the Hub: parquet repositories through `datasets`, and CoOp's zip files."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
from huggingface_hub import constants, hf_hub_download

from jscpt_peft.data.benchmark import Benchmark, HubArchive, HubTable
from jscpt_peft.data.class_names import class_name
from jscpt_peft.data.coop import local_source
from jscpt_peft.data.found import FoundTask, RowsOfTables, Source
from jscpt_peft.data.hub_table import column_names, load_tables
from jscpt_peft.data.task import read_column


def hub_source(benchmark: Benchmark, place: HubTable | HubArchive, revision: str | None = None) -> Source:
    """The data set at one of its places on the Hub; downloads are kept in Hugging Face's cache.

    Args:
        benchmark: the data set.
        place: one of `benchmark.hub`.
        revision: branch, tag or commit to use instead of the place's own.

    Raises:
        OSError, ValueError, datasets.exceptions.DatasetsError: it cannot be reached, is not in the cache while
            `HF_DATASETS_OFFLINE` is set, or its splits and columns are not those that `place` describes.
    """
    revision = revision or place.revision
    origin = f"{place.repository}@{revision or 'main'}"
    if isinstance(place, HubArchive):
        return _archive(benchmark, place, revision)._replace(origin=origin)
    return _table_source(benchmark, place, revision, origin)


def _table_source(benchmark: Benchmark, place: HubTable, revision: str | None, origin: str) -> Source:
    tables, places = load_tables(benchmark, place, revision)
    tasks: dict[str, FoundTask] = {task: {} for task in benchmark.tasks}
    task_of_domain = {domain.lower(): task for task, domain in benchmark.domains.items()}
    for split, table in tables.items():
        ours = place.splits[split]
        numbers = places[split] if split in places else range(len(table))
        for number, raw, domain in zip(numbers, _names(table, place.label), _domains(table, place), strict=True):
            task = benchmark.name if domain is None else task_of_domain.get(domain.lower())
            name = class_name(benchmark, raw)
            if task is not None and name is not None:
                tasks[task].setdefault(ours, {}).setdefault(name, []).append(f"{split}/{number}")
    images = {split: table.select_columns(["image"]) for split, table in tables.items()}
    return Source(tasks, RowsOfTables(images, places), origin)


def _names(table: datasets.Dataset, column: str) -> Iterator[str]:
    """A column of class labels or of strings as strings, without touching an image."""
    names = column_names(table.features, column)
    values = read_column(table, column)
    return iter(values) if names is None else (names[value] for value in values)


def _domains(table: datasets.Dataset, place: HubTable) -> Iterable[str | None]:
    return [None] * len(table) if place.domain is None else _names(table, place.domain)


def _archive(benchmark: Benchmark, place: HubArchive, revision: str) -> Source:
    kept = Path(constants.HF_HOME, "jscpt_peft", f"{benchmark.name}-{revision}")
    if not kept.is_dir():
        _unpack(
            hf_hub_download(
                place.repository,
                place.file,
                repo_type=place.repo_type,
                revision=revision,
                local_files_only=datasets.config.HF_HUB_OFFLINE,
            ),
            kept,
        )
    inside = f"{benchmark.folder}/{benchmark.split_file}"
    found = next(kept.rglob(inside), None)
    if found is None:
        raise ValueError(f"{place.file} of {place.repository} holds no {inside}.")
    return local_source(benchmark, found.parent.parent)


def _unpack(path: str, target: Path) -> None:
    """The whole archive or nothing; of several processes that do so at once, the first one's stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(staging)
        try:
            os.rename(staging, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
