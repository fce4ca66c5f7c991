"""The split of the emoji task set, against the one that its pictures were first published with."""

from __future__ import annotations

import random
from collections import Counter

from emoji_split import Emoji, split_emoji
from published_emoji import published


def test_the_rule_gives_the_published_split_whatever_the_order():
    expected = published()
    emoji = [each for each, _ in expected]
    random.Random(1).shuffle(emoji)
    assert dict(split_emoji(emoji)) == dict(expected)
    assert Counter(split for _, split in expected) == {"pretrain": 1169, "train": 309, "validation": 125, "test": 249}
    assert len({each.class_name for each, split in expected if split == "test"}) == 57


def test_signs_and_small_classes_are_for_pretraining_only():
    seven = [Emoji(str(number), str(number), "Objects", "lock") for number in range(7)]
    signs = [Emoji(str(number), str(number), "Symbols", "arrow") for number in range(20)]
    assert {split for _, split in split_emoji(seven + signs)} == {"pretrain"}
    eight = [*seven, Emoji("7", "7", "Objects", "lock")]
    assert Counter(split for _, split in split_emoji(eight)) == {"test": 2, "validation": 1, "train": 2, "pretrain": 3}
