"""Finding a benchmark: in a folder, or at the first of its places on the Hub that can be used; and checking it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from jscpt_peft.data.benchmarks import Benchmark, plain
from jscpt_peft.data.coop import local_source
from jscpt_peft.data.found import POOL, Source, keys_of
from jscpt_peft.data.hub import hub_source

logger = logging.getLogger(__name__)

# The base of all that goes wrong in httpx or httpx2, whichever huggingface_hub uses.
HTTP_ERROR = HfHubHTTPError.__bases__[0]

# The first two stand for every 5xx, 429 and timeout; ArrowInvalid is a file that is cut off or garbled,
# JSONDecodeError an answer that is not the Hub's. Some of them are ValueErrors or FileNotFoundErrors, and `datasets`
# makes such of others, which look as if the data set were not there.
WITHOUT_REASON = (LocalEntryNotFoundError, RevisionResolutionError)
BROKEN = (*WITHOUT_REASON, HTTP_ERROR, ConnectionError, TimeoutError, pa.ArrowInvalid, json.JSONDecodeError)

# What says that a place is not there or holds something else, unless the way to it broke; anything else is for the
# user to mend.
ABSENT = (FileNotFoundError, ValueError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)


def find(
    benchmark: Benchmark,
    data_root: str | Path | None = None,
    revision: str | None = None,
    origin: str | None = None,
) -> Source:
    """The images of a benchmark, whose classes are the expected ones, below `data_root` or else on the Hub.

    Args:
        revision: branch, tag or commit on the Hub, in place of the pinned one.
        origin: `<repository>@<commit>`, to have exactly that again.

    Raises:
        FileNotFoundError, ValueError: what is below `data_root` is incomplete or something else.
        OSError: the Hub cannot be read; the message says why.
    """
    if data_root is None:
        source = _on_hub(benchmark, revision, origin)
    else:
        source = local_source(benchmark, data_root)
        check_classes(benchmark, source)
    compare_counts(benchmark, source)
    return source


def _on_hub(benchmark: Benchmark, revision: str | None, origin: str | None) -> Source:
    """The first place on the Hub that exists and whose classes are the expected ones.

    Another place is no answer to a failure that may pass: the same command would use other images each time.
    """
    places, reasons, offline = benchmark.hub, [], datasets.config.HF_HUB_OFFLINE
    if origin is not None:
        repository, _, revision = origin.partition("@")
        places = [place for place in benchmark.hub if place.repository == repository]
        if not places:
            raise ValueError(
                f"`manifest` was written for {origin}, which is no place of {benchmark.name} on the Hub: give "
                "`data_root` where it names a folder."
            )
    for place in places:
        try:
            source = hub_source(benchmark, place, revision)
            check_classes(benchmark, source)
        except Exception as error:  # the network's and the Hub's failures have no common base
            cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
            broken = None if offline else interruption(error)
            reasons.append(f"{place.repository}: {_reason(broken or cause)}")
            if offline or (broken is None and isinstance(cause, ABSENT)):
                continue
            message = _unread(benchmark, reasons, _again(place.repository, broken) if broken else "")
            raise OSError(f"{message} Complete files are kept in {constants.HF_HOME}.") from error
        if reasons:
            logger.warning("%s comes from %s instead (%s).", benchmark.name, source.origin, "; ".join(reasons))
        return source
    raise OSError(_unread(benchmark, reasons))


def _reason(error: BaseException) -> str:
    text, name = " ".join(str(error).split()), type(error).__name__
    return f"{name}: {text}" if text and isinstance(error, BROKEN) else text or name


def _again(repository: str, broken: BaseException) -> str:
    again = "The Hub or the network failed, which may pass: run the same command again. "
    if isinstance(broken, pa.ArrowInvalid):
        copies = f"*--{repository.replace('/', '--')}"
        again += f"If a file stays damaged, delete {copies} in {constants.HF_HUB_CACHE} first. "
    return again


def _unread(benchmark: Benchmark, reasons: Sequence[str], again: str = "") -> str:
    offline = "`HF_DATASETS_OFFLINE` or `HF_HUB_OFFLINE` is set. " if datasets.config.HF_HUB_OFFLINE else ""
    return (
        f"{benchmark.name} cannot be read from the Hub ({'; '.join(reasons)}). {offline}{again}Without network give "
        "`data_root`, the folder with the data set as users of CoOp, Dassl and LibMTL have it; `task_set` 'shapes' "
        "needs no data at all."
    )


def interruption(error: BaseException) -> BaseException | None:
    """What broke the way to the Hub, among all that led to `error`, also behind `from None`.

    Of several it is what says most: the Hub's answer, then what the network or the file says. None: `error` has
    another reason, such as a 404, which would be the same another time.
    """
    led_to = [error]
    for each in led_to:  # grows while it is walked
        led_to += [one for one in (each.__cause__, each.__context__) if one is not None and one not in led_to]
    found = [each for each in led_to if isinstance(each, BROKEN) and _may_pass(_status(each))]
    return min(found, key=lambda each: (isinstance(each, WITHOUT_REASON), _status(each) is None), default=None)


def _may_pass(status: int | None) -> bool:
    return status is None or status in (408, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def check_classes(benchmark: Benchmark, source: Source) -> None:
    """Raises a ValueError that says in one sentence how the classes of `source` differ from the benchmark's."""
    for task, splits in source.tasks.items():
        classes = sorted({name for split in splits.values() for name, keys in split.items() if keys})
        there = {plain(name) for name in classes}
        missing = sorted(name for name in benchmark.expected if plain(name) not in there)
        if missing or len(classes) != benchmark.num_classes:
            lacking = f" and no {', '.join(map(repr, missing[:3]))}" if missing else ""
            raise ValueError(
                f"{source.origin} has {len(classes)} classes{lacking} in task {task!r}, but {benchmark.name} has "
                f"{benchmark.num_classes} (found: {', '.join(classes[:5]) or 'none'}, ...)"
            )
        if unlearnable := [name for name in classes if "train" in splits and not splits["train"].get(name)]:
            raise ValueError(f"{source.origin} has no training images of {unlearnable[0]!r} in task {task!r}")


def compare_counts(benchmark: Benchmark, source: Source) -> None:
    """Warns in one sentence where `source` does not hold as many images as the benchmark is known to."""
    for task, splits in source.tasks.items():
        counts = {split: len(keys_of(classes)) for split, classes in splits.items()}
        expected = dict(benchmark.counts)
        if benchmark.domains:
            counts = {task: sum(counts.values())}
        elif POOL in counts:
            expected = {POOL: sum(expected.values())}
        elif "validation" not in counts:  # it is still among the training images
            expected["train"] += expected["validation"]
        differing = [
            f"{count} images in {name!r} (not {expected[name]})"
            for name, count in counts.items()
            if expected.get(name, count) != count
        ]
        if differing:
            logger.warning(
                "%s has %s: accuracies on it cannot be compared with published ones.",
                *(source.origin, ", ".join(differing)),
            )
