"""The paper's benchmarks as task sets: from the Hub or from a folder, checked, divided and put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jscpt_peft.choices import nearest
from jscpt_peft.data.assemble import build_task
from jscpt_peft.data.benchmarks import BENCHMARKS, TASK_SET_MEMBERS, Benchmark
from jscpt_peft.data.found import FoundTask, Source, without_unreadable
from jscpt_peft.data.manifest import images_of_manifest, new_manifest
from jscpt_peft.data.protocol import divide
from jscpt_peft.data.sources import check_classes, find
from jscpt_peft.data.splits import check_amount
from jscpt_peft.data.task import TaskSet

BENCHMARK_TASK_SETS = (*TASK_SET_MEMBERS, *BENCHMARKS)


class _Piece(NamedTuple):
    """One task before its images are divided; `task` is its name within the benchmark, whatever else is loaded."""

    benchmark: Benchmark
    task: str
    source: Source
    splits: FoundTask


def benchmark_task_set(
    name: str,
    data_root: str | Path | None = None,
    train_fraction: float | None = None,
    shots: int | None = None,
    seed: int = 1,
    revision: str | None = None,
    manifest: dict | None = None,
    skip_bad_images: bool = False,
) -> TaskSet:
    """Office-Home, MiniDomainNet, the ten data sets of few-shot learning, or any mixture of them.

    The images stay on disk and are decoded on access. Rows have `image`, `label`, `task_id` and `key`. `protocol.py`
    tells how they are divided. Where neither `train_fraction` nor `shots` is given, Office-Home gets 10 %,
    MiniDomainNet 1 % and each of the ten data sets 5 shots, which are among the paper's protocols.

    Args:
        name: `office_home`, `mini_domainnet`, `few_shot_10`, one of its ten data sets, or several with commas between.
        data_root: the folder with the data sets' folders, in the layouts of CoOp, Dassl or LibMTL; None: the Hub.
        train_fraction: the part of each class's training images to keep, in (0, 1]; at least one image per class.
        shots: the number to keep of each class (all of them where there are fewer); at most one of the two.
        seed: of what is kept and of D_dev.
        revision: branch, tag or commit of every Hub repository, in place of the pinned ones.
        manifest: re-use exactly the images of this manifest instead of drawing some.
        skip_bad_images: leave out unreadable images (each is decoded once now, and named in the log).

    Raises:
        FileNotFoundError: something is missing below `data_root`; the message says what belongs where.
        OSError: no place on the Hub can be used; the message says why for each.
        ValueError: an unknown name, a source whose classes are not the benchmark's, or an option out of its range.
    """
    check_amount(train_fraction, shots, manifest)
    if data_root is not None and revision is not None:
        raise ValueError(f"`revision` is {revision!r}, which is for the Hub, but `data_root` is given: leave one out.")
    name = mixture_name(name)
    benchmarks = _benchmarks(name)
    # A manifest from the Hub names rows, which are those of one commit.
    origins = manifest["options"].get("sources", {}) if manifest is not None and data_root is None else {}
    sources = [find(each, data_root, revision, origins.get(each.name)) for each in benchmarks]
    if skip_bad_images:
        sources = [_readable(benchmark, source) for benchmark, source in zip(benchmarks, sources, strict=True)]
    pieces = _named_pieces(benchmarks, sources)
    if manifest is not None:
        held = {task: piece.splits for task, piece in pieces.items()}
        chosen = images_of_manifest(manifest, name, held, " or ".join(source.origin for source in sources))
    else:
        chosen = {
            task: divide(
                piece.benchmark, piece.task, piece.splits, *_amount(piece.benchmark, train_fraction, shots), seed
            )
            for task, piece in pieces.items()
        }
        # Manifests are published: what is below `data_root` goes by its folder there, as the images do.
        names = {
            each.name: source.origin if data_root is None else each.folder
            for each, source in zip(benchmarks, sources, strict=True)
        }
        amount = {"train_fraction": train_fraction, "shots": shots, "skip_bad_images": skip_bad_images}
        manifest = new_manifest(name, seed, {**amount, "sources": names}, chosen)
    tasks = [
        build_task(task_id, task, splits, pieces[task].source.images, template=pieces[task].benchmark.template)
        for task_id, (task, splits) in enumerate(chosen.items())
    ]
    return TaskSet(name=name, tasks=tuple(tasks), manifest=manifest)


def mixture_name(name: str) -> str:
    """A task set's name as manifests have it: without blanks around commas."""
    return ",".join(part.strip() for part in name.split(","))


def _readable(benchmark: Benchmark, source: Source) -> Source:
    source = source._replace(tasks=without_unreadable(source.tasks, source.images, source.origin))
    check_classes(benchmark, source)  # some may be left without an image
    return source


def _benchmarks(name: str) -> list[Benchmark]:
    members = [member for part in name.split(",") for member in TASK_SET_MEMBERS.get(part, (part,))]
    for member in members:
        if member not in BENCHMARKS:
            raise ValueError(
                f"`name` is {name!r}, but {member!r} is none of {', '.join(BENCHMARK_TASK_SETS)}."
                f"{nearest(member, BENCHMARK_TASK_SETS)}"
            )
    repeated = [member for member, count in Counter(members).items() if count > 1]
    if repeated:
        raise ValueError(f"`name` is {name!r}, which holds {repeated[0]!r} more than once: name it once.")
    return [BENCHMARKS[member] for member in members]


def _named_pieces(benchmarks: Sequence[Benchmark], sources: Sequence[Source]) -> dict[str, _Piece]:
    """Every task by its name, in order; a domain's name that two benchmarks have gets the benchmark's before it."""
    count = Counter(task for benchmark in benchmarks for task in benchmark.tasks)
    return {
        f"{benchmark.name}_{task}" if count[task] > 1 else task: _Piece(benchmark, task, source, source.tasks[task])
        for benchmark, source in zip(benchmarks, sources, strict=True)
        for task in benchmark.tasks
    }


def _amount(benchmark: Benchmark, train_fraction: float | None, shots: int | None) -> tuple[float | None, int | None]:
    """`train_fraction` and `shots` as asked for, or else the benchmark's own protocol."""
    if train_fraction is None and shots is None:
        return benchmark.default_fraction, benchmark.default_shots
    return train_fraction, shots
