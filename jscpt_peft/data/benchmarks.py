"""The paper's benchmarks, read from `benchmarks.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from jscpt_peft.data.benchmark import Benchmark, HubArchive, HubTable


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
