"""From the class names of a repository or folder to those that CLIP is asked about (CoOp's)."""

from __future__ import annotations

import re

from jscpt_peft.data.benchmark import Benchmark

CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
YEAR = re.compile(r"(?:19|20)\d\d")


def class_name(benchmark: Benchmark, raw: str) -> str | None:
    """The name of the class that a source calls `raw`; None where it is no class of the benchmark.

    Cleaning a clean name changes nothing, so that names do not depend on where they were cleaned. Where a source has
    other words in another order (SUN397: `apse indoor` on the Hub, `indoor apse` in CoOp's file), they stay so.
    """
    if plain(raw) in benchmark.dropped:
        return None
    if plain(raw) in benchmark.renamed:
        return benchmark.renamed[plain(raw)]
    name = " ".join(raw.replace("_", " ").split())
    if benchmark.camel_case:
        name = CAMEL_CASE.sub(" ", name)
    if benchmark.year_first:
        name = _year_first(name)
    if benchmark.names_all_classes and name not in benchmark.expected:
        return None
    return name


def plain(name: str) -> str:
    """`name` without all that spellings differ in: capitals, spaces, underscores and hyphens."""
    return "".join(character for character in name.lower() if character.isalnum())


def _year_first(name: str) -> str:
    *model, last = name.split(" ")
    return " ".join([last, *model]) if YEAR.fullmatch(last) else name
