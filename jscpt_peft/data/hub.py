"""Benchmarks on the Hub: parquet repositories through `datasets`, and CoOp's zip files."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import datasets
from huggingface_hub import constants, hf_hub_download, resolve_revision

from jscpt_peft.data.benchmarks import Benchmark, HubArchive, HubTable, plain
from jscpt_peft.data.coop import local_source
from jscpt_peft.data.found import FoundTask, RowsOfTables, Source
from jscpt_peft.data.hub_tables import column_names, load_tables, streamed_tables, text_of
from jscpt_peft.data.task import read_column

LARGEST_ARCHIVE = 16 * 2**30
"""Bytes that an archive may unpack to; UCF101's middle frames are about 1 GB."""


def hub_source(benchmark: Benchmark, place: HubTable | HubArchive, revision: str | None = None) -> Source:
    """The data set at one of its places on the Hub; downloads are kept in Hugging Face's cache.

    `revision` (branch, tag or commit) goes before the place's own. Raises a FileNotFoundError where it is not there, a
    ValueError where its splits, columns or labels are not those of `place`, other OSErrors where the way to it fails.
    """
    archive = isinstance(place, HubArchive)
    # Rows are known by their numbers, and copies on disk by the repository's commit: both hold for one commit only.
    commit = resolve_revision(
        place.repository,
        repo_type="model" if archive else "dataset",
        revision=revision or place.revision,
        local_files_only=datasets.config.HF_HUB_OFFLINE,
    ).resolved
    origin = f"{place.repository}@{commit}"
    if archive:
        return _archive(benchmark, place, commit)._replace(origin=origin)
    return _table_source(benchmark, place, commit, origin)


def _table_source(benchmark: Benchmark, place: HubTable, commit: str, origin: str) -> Source:
    tables, places = streamed_tables(benchmark, place, commit) if place.streamed else (load_tables(place, commit), {})
    tasks: dict[str, FoundTask] = {task: {} for task in benchmark.tasks}
    task_of_domain = {plain(domain): task for task, domain in benchmark.domains.items()}
    for split, table in tables.items():
        ours = place.splits[split]
        numbers = places[split] if split in places else range(len(table))
        domains = [None] * len(table) if place.domain is None else _texts(table, place, place.domain)
        for number, raw, domain in zip(numbers, _texts(table, place, place.label), domains, strict=True):
            task = benchmark.name if domain is None else task_of_domain.get(plain(domain))
            name = benchmark.class_name(raw)
            if task is not None and name is not None:
                tasks[task].setdefault(ours, {}).setdefault(name, []).append(f"{split}/{number}")
    files = datasets.Image(decode=False)
    images = {split: table.select_columns(["image"]).cast_column("image", files) for split, table in tables.items()}
    return Source(tasks, RowsOfTables(images, places), origin)


def _texts(table: datasets.Dataset, place: HubTable, column: str) -> Iterator[str]:
    """A column of class labels or of strings as strings, without touching an image."""
    names = column_names(table.features, column)
    for row, value in enumerate(read_column(table, column)):
        yield text_of(place, column, names, value, row)


def _archive(benchmark: Benchmark, place: HubArchive, commit: str) -> Source:
    kept = Path(constants.HF_HOME, "jscpt_peft", f"{benchmark.name}-{commit}")
    if not kept.is_dir():
        offline = datasets.config.HF_HUB_OFFLINE
        path = hf_hub_download(place.repository, place.file, revision=commit, local_files_only=offline)
        _unpack(benchmark, path, kept)
    return local_source(benchmark, kept)


def _unpack(benchmark: Benchmark, path: str, target: Path) -> None:
    """The folder with the split file becomes the data set's folder below `target`, wholly or not at all.

    Of several processes that do so at once, the first one's stays. Links in an archive become files.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
        unpacked, whole = Path(staging, "unpacked"), Path(staging, "whole")
        try:
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive)
                archive.extractall(unpacked)
        except (zipfile.BadZipFile, zlib.error) as error:
            damaged = Path(path).resolve()
            raise OSError(f"{damaged} is damaged ({error}): delete it, and it is downloaded again") from error
        split_file = next(unpacked.rglob(benchmark.split_file), None)
        if split_file is None:
            raise FileNotFoundError(f"{Path(path).name} holds no {benchmark.split_file}")
        whole.mkdir()
        os.rename(split_file.parent, whole / benchmark.folder)
        try:
            os.rename(whole, target)
        except OSError:
            if not target.is_dir():
                raise


def _check_archive(archive: zipfile.ZipFile) -> None:
    """No more is read of a member than the size that is looked at here."""
    size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST_ARCHIVE:
        raise ValueError(f"{archive.filename} would unpack to {size} bytes, more than {LARGEST_ARCHIVE}")
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{archive.filename} holds {member.filename!r}, which leads out of where it is unpacked")
