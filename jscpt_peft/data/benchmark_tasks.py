"""The paper's benchmarks as task sets: from the Hub or from a folder, checked, divided and put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jscpt_peft.choices import nearest
from jscpt_peft.data.benchmarks import BENCHMARKS, TASK_SET_MEMBERS, Benchmark
from jscpt_peft.data.found import Source, build_task, without_unreadable
from jscpt_peft.data.manifest import images_of_manifest, new_manifest
from jscpt_peft.data.protocol import divide
from jscpt_peft.data.sources import check_classes, find
from jscpt_peft.data.splits import check_amount
from jscpt_peft.data.task import TaskSet

BENCHMARK_TASK_SETS = (*TASK_SET_MEMBERS, *BENCHMARKS)


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
    sources = {each: find(BENCHMARKS[each], data_root, revision, origins.get(each)) for each in benchmarks}
    if skip_bad_images:
        sources = {each: _readable(BENCHMARKS[each], source) for each, source in sources.items()}
    places = _places(benchmarks)
    found = {task: sources[each].tasks[own] for task, (each, own) in places.items()}
    if manifest is not None:
        chosen = images_of_manifest(manifest, name, found, " or ".join(each.origin for each in sources.values()))
    else:
        chosen = {}
        for task, (each, own) in places.items():
            benchmark, amount = BENCHMARKS[each], (train_fraction, shots)
            if amount == (None, None):
                amount = benchmark.default_fraction, benchmark.default_shots
            chosen[task] = divide(benchmark, own, found[task], *amount, seed)
        options = {
            "train_fraction": train_fraction,
            "shots": shots,
            "skip_bad_images": skip_bad_images,
            # Manifests are published: what is below `data_root` goes by its folder there, as the images do.
            "sources": {
                each: source.origin if data_root is None else BENCHMARKS[each].folder
                for each, source in sources.items()
            },
        }
        manifest = new_manifest(name, seed, options, chosen)
    tasks = []
    for task_id, (task, splits) in enumerate(chosen.items()):
        each, _ = places[task]
        tasks.append(build_task(task_id, task, splits, sources[each].images, template=BENCHMARKS[each].template))
    return TaskSet(name=name, tasks=tuple(tasks), manifest=manifest)


def mixture_name(name: str) -> str:
    """A task set's name as manifests have it: without blanks around commas."""
    return ",".join(part.strip() for part in name.split(","))


def _readable(benchmark: Benchmark, source: Source) -> Source:
    source = source._replace(tasks=without_unreadable(source.tasks, source.images, source.origin))
    check_classes(benchmark, source)  # some may be left without an image
    return source


def _benchmarks(name: str) -> list[str]:
    members = [member for part in name.split(",") for member in TASK_SET_MEMBERS.get(part, (part,))]
    for member, count in Counter(members).items():
        if member not in BENCHMARKS:
            raise ValueError(
                f"`name` is {name!r}, but {member!r} is none of {', '.join(BENCHMARK_TASK_SETS)}."
                f"{nearest(member, BENCHMARK_TASK_SETS)}"
            )
        if count > 1:
            raise ValueError(f"`name` is {name!r}, which holds {member!r} more than once: name it once.")
    return members


def _places(benchmarks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Every task -> its benchmark, and its name there; that of several gets the benchmark's before it."""
    count = Counter(task for each in benchmarks for task in BENCHMARKS[each].tasks)
    return {
        f"{each}_{task}" if count[task] > 1 else task: (each, task)
        for each in benchmarks
        for task in BENCHMARKS[each].tasks
    }
