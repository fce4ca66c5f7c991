"""Finding a benchmark: in a folder, or at the first of its places on the Hub that can be used; and checking it."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError

from jscpt_peft.data.assemble import keys_of
from jscpt_peft.data.benchmark import Benchmark
from jscpt_peft.data.coop import local_source
from jscpt_peft.data.found import Source
from jscpt_peft.data.hub import hub_source

logger = logging.getLogger(__name__)


def find(benchmark: Benchmark, data_root: str | Path | None = None, revision: str | None = None) -> Source:
    """The images of a benchmark, whose classes are the expected ones.

    Args:
        benchmark: what to look for.
        data_root: the folder that holds it; None: the Hub.
        revision: branch, tag or commit on the Hub, in place of the pinned one.

    Raises:
        FileNotFoundError, ValueError: what is below `data_root` is incomplete or something else.
        OSError: no place on the Hub can be used; the message says why for each.
    """
    if data_root is not None:
        source = local_source(benchmark, data_root)
        check_classes(benchmark, source)
        compare_counts(benchmark, source)
        return source
    reasons = []
    for place in benchmark.hub:
        try:
            source = hub_source(benchmark, place, revision)
            check_classes(benchmark, source)
        except (OSError, ValueError, DatasetsError) as error:
            cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
            reasons.append(f"{place.repository}: {' '.join(str(cause).split())}")
            continue
        if reasons:
            logger.warning("%s comes from %s instead (%s).", benchmark.name, source.origin, "; ".join(reasons))
        return source
    offline = "`HF_DATASETS_OFFLINE` or `HF_HUB_OFFLINE` is set. " if datasets.config.HF_HUB_OFFLINE else ""
    raise OSError(
        f"{benchmark.name} cannot be read from the Hub ({'; '.join(reasons)}). {offline}Without network give "
        "`data_root`, the folder with the data set as users of CoOp, Dassl and LibMTL have it; `task_set` 'shapes' "
        "needs no data at all."
    )


def check_classes(benchmark: Benchmark, source: Source) -> None:
    """Raises a ValueError that says in one sentence how the classes of `source` differ from the benchmark's."""
    for task, splits in source.tasks.items():
        classes = {name for split in splits.values() for name, keys in split.items() if keys}
        missing = sorted(set(benchmark.expected) - classes)
        if missing or len(classes) != benchmark.num_classes:
            lacking = f" and no {', '.join(map(repr, missing[:3]))}" if missing else ""
            raise ValueError(
                f"{source.origin} has {len(classes)} classes{lacking} in task {task!r}, but {benchmark.name} has "
                f"{benchmark.num_classes} (found: {', '.join(sorted(classes)[:5]) or 'none'}, ...)"
            )
        unlearnable = [name for name in sorted(classes) if "train" in splits and not splits["train"].get(name)]
        if unlearnable:
            raise ValueError(f"{source.origin} has no training images of {unlearnable[0]!r} in task {task!r}")


def compare_counts(benchmark: Benchmark, source: Source) -> None:
    """Warns in one sentence where `source` does not hold as many images as the benchmark is known to."""
    for task, splits in source.tasks.items():
        counts = {split: len(keys_of(classes)) for split, classes in splits.items()}
        expected = {task: benchmark.counts.get(task)} if benchmark.domains else dict(benchmark.counts)
        if benchmark.domains:
            counts = {task: sum(counts.values())}
        differing = {name: count for name, count in counts.items() if expected.get(name) not in (None, count)}
        if differing:
            detail = ", ".join(
                f"{count} images in {name!r} (not {expected[name]})" for name, count in differing.items()
            )
            logger.warning(
                "%s has %s: accuracies on it cannot be compared with published ones.", source.origin, detail
            )
