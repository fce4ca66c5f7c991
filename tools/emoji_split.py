"""Which emoji are in the emoji task set, as what class, in which split: a pure function of Unicode's own names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

SIGNS = ("Flags", "Symbols")  # categories whose members are signs, not images of things: for pretraining only
SMALLEST_CLASS = 8  # emoji; 2 for testing, 1 for validation, 2 for training and 3 for pretraining
PARTS = {"test": 0.2, "validation": 0.1, "train": 0.25}  # of a class, in this order; the rest is for pretraining


@dataclass(frozen=True)
class Emoji:
    """An emoji in emoji-datasource's terms.

    Attributes:
        name: its short name, such as `owl`: the name of its files.
        code_points: hexadecimal and upper case, such as `1F9D1-200D-1F33E`.
        category: Unicode's group, such as `Animals & Nature`.
        class_name: Unicode's subgroup, such as `animal-bird`.
    """

    name: str
    code_points: str
    category: str
    class_name: str


def split_emoji(emoji: Iterable[Emoji]) -> list[tuple[Emoji, str]]:
    """Every emoji with its split: `train`, `validation`, `test` or `pretrain`.

    The emoji of a class are ordered by the SHA-256 of their code points and dealt out in the order of `PARTS`. An
    emoji is in one split only, whatever the drawing style, so no concept leaks; those left for pretraining are no
    task's. Classes come in the order of their categories' and their own names.
    """
    classes = defaultdict(list)
    for each in emoji:
        classes[each.category, each.class_name].append(each)
    chosen = []
    for (category, _), members in sorted(classes.items()):
        splits = ["pretrain"] * len(members)
        if category not in SIGNS and len(members) >= SMALLEST_CLASS:
            members = sorted(members, key=lambda each: hashlib.sha256(each.code_points.encode()).digest())
            dealt = [split for split, part in PARTS.items() for _ in range(round(part * len(members)))]
            splits[: len(dealt)] = dealt
        chosen += zip(members, splits, strict=True)
    return chosen
