"""Folders that are named after splits, as people spell them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": ("validation", "validating", "valid", "val", "dev", "development", "eval", "holdout"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
# What else such names hold, as in `seg_train`, `Training Set` or `train_images_v2`.
_FILLERS = {
    "seg", "set", "sets", "split", "splits", "data", "dataset", "image", "images", "img", "imgs", "pic", "pics",
    "picture", "pictures", "photo", "photos", "folder", "dir", "file", "files", "sample", "samples", "subset",
    "part", "fold", "v", "ver", "version", "new", "old", "raw", "final", "full", "small", "mini", "clean",
    "official", "original", "labeled", "labelled", "resized", "cropped",
}  # fmt: skip
# Glued to other letters, as in `xtrain` or `trainA`, the long words alone are known.
_GLUED = re.compile(r"(?P<before>.*?)(?P<word>training|train|testing|test|validation|valid|val)(?P<after>.*)")


def split_and_rest(name: str) -> tuple[str | None, str]:
    """The split that a folder's name speaks of, if of one, and what else is in the name."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [word for word in re.findall(r"[^\W\d_]+", spaced.lower()) if word not in _FILLERS]
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    rest = [word for word in words if word not in _SPLIT_OF]
    if not splits:
        glued = [(place, match) for place, word in enumerate(words) if (match := _GLUED.fullmatch(word))]
        for place, match in glued[:1]:
            splits = {_SPLIT_OF[match["word"]]}
            around = [each for each in (match["before"], match["after"]) if each not in _FILLERS]
            rest = [*words[:place], *around, *words[place + 1 :]]
    rest = " ".join(each for each in rest if each)
    return (splits.pop(), rest) if len(splits) == 1 else (None, rest)


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Those of the names of one level that stand for splits, with these.

    `train` does by itself, `x_train` beside `x_test`; of a class `bullet train` nothing is thought.
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        split, rest = split_and_rest(name)
        if split is not None:
            groups[rest][name] = split
    found = [group for rest, group in groups.items() if rest == "" or len(set(group.values())) > 1]
    return {name: split for group in found for name, split in group.items()}
