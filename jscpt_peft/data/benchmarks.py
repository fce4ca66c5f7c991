"""The paper's benchmarks: where their images are, in which columns and files, and what is to be found there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_YEAR_LAST = re.compile(r"^(.+) ((?:19|20)\d\d)$")


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """`name` without all that spellings differ in: capitals, spaces, underscores and hyphens."""
    return "".join(filter(str.isalnum, name.lower()))


@dataclass(frozen=True)
class HubTable:
    """A data set repository with images in parquet files.

    Args:
        repository: its name on the Hub.
        revision: the commit that was looked at; None: the newest.
        splits: the repository's splits -> `train`, `validation`, `test`, or `pool` for what is to be split here.
        rows: number of rows of these splits, as published; a split without a number may be missing.
        tolerance: the part by which `rows` may be off, where only a rounded number is published.
        label, domain: columns of the class and, where a repository holds several tasks, of the task.
        streamed: read once from end to end, keeping on disk only what is of use: for repositories many times as large.
        middle_frame: its rows are frames of videos (columns `video_id`, `clip_id`, `frame`), of which the middle one
            of each clip is of use.
    """

    repository: str
    splits: Mapping[str, str]
    rows: Mapping[str, int]
    revision: str | None = None
    tolerance: float = 0.0
    label: str = "label"
    domain: str | None = None
    streamed: bool = False
    middle_frame: bool = False


@dataclass(frozen=True)
class HubArchive:
    """A zip file in a model repository on the Hub that holds a data set in CoOp's layout."""

    repository: str
    file: str
    revision: str


@dataclass(frozen=True)
class Benchmark:
    """One data set, of one task or of one task a domain.

    Args:
        name: as in `--task_set`.
        num_classes: of every task.
        template: the zero-shot template of the paper and of CoOp.
        hub: its places on the Hub, best first.
        folder: its folder below `--data_root`, as users of CoOp, Dassl and LibMTL have it.
        images: the folder of the images in there.
        split_file: CoOp's split JSON in there.
        counts: images in CoOp's train, validation and test, or in all of each domain.
        renamed: raw class names, as `plain` spells them, -> what CoOp calls them.
        dropped: raw class names, as `plain` spells them, that are no classes of the benchmark.
        expected: class names that must be among them, but for what `plain` takes away; all others are dropped where
            `num_classes` of them are named.
        camel_case: its raw names are words run together, as in `ApplyEyeMakeup`.
        year_first: CoOp moves the year of a raw name to its front.
        domains: task name -> its name in the repository's domain column and, but for case, its folder; empty for a
            data set of one task.
        default_fraction, default_shots: a protocol of the paper, used where none is asked for.
    """

    name: str
    num_classes: int
    hub: tuple[HubTable | HubArchive, ...]
    folder: str
    images: str = ""
    split_file: str | None = None
    template: str = "a photo of a {}."
    counts: Mapping[str, int] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    camel_case: bool = False
    year_first: bool = False
    domains: Mapping[str, str] = field(default_factory=dict)
    default_fraction: float | None = None
    default_shots: int | None = None

    def class_name(self, raw: str) -> str | None:
        """The name of the class that a source calls `raw`; None where it is no class of the benchmark.

        Cleaning a clean name changes nothing, so that names do not depend on where they were cleaned. The order of
        words stays that of the source (SUN397: `apse indoor` on the Hub, `indoor apse` in CoOp's file).
        """
        if plain(raw) in self.dropped:
            return None
        if plain(raw) in self.renamed:
            return self.renamed[plain(raw)]
        name = " ".join(raw.replace("_", " ").split())
        if self.camel_case:
            name = _CAMEL_CASE.sub(" ", name)
        if self.year_first:
            name = _YEAR_LAST.sub(r"\2 \1", name)
        return None if self.names_all_classes and name not in self.expected else name

    @property
    def names_all_classes(self) -> bool:
        """Whether `expected` is the whole list of classes, so that a source's other classes are none of ours."""
        return len(self.expected) == self.num_classes

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its tasks: its domains, or the data set itself."""
        return tuple(self.domains) or (self.name,)


def _benchmark(name: str, hub: list[dict], **facts) -> Benchmark:
    lists = {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
    places = tuple((HubArchive if "file" in place else HubTable)(**place) for place in hub)
    return Benchmark(name=name, hub=places, **{**facts, **lists})


_FACTS = tomllib.loads(Path(__file__).with_name("benchmarks.toml").read_text(encoding="utf-8"))

BENCHMARKS = {name: _benchmark(name, **facts) for name, facts in _FACTS.items()}
"""Every data set by name."""

FEW_SHOT_10 = tuple(each for each in BENCHMARKS.values() if each.default_shots)
"""The ten data sets of few-shot learning."""

TASK_SET_MEMBERS = {"few_shot_10": tuple(each.name for each in FEW_SHOT_10)}
"""Names that stand for several data sets."""
