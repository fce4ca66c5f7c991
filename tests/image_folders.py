"""Folders of small images, as users of the task set `folder` have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def save(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), colour).save(path)


def flat(root: Path, task: str, **sizes: int) -> None:
    """A task without folders for splits; `sizes`: class -> images."""
    for name, size in sizes.items():
        for number in range(size):
            save(root / task / name / f"{number}.png")


def splits(
    root: Path, task: str, names: Sequence[str] = ("train", "validation", "test"), **sizes: tuple[int, int, int]
) -> None:
    """A task with folders for splits, called `names`; `sizes`: class -> images in each."""
    for name, counts in sizes.items():
        for split, size in zip(names, counts, strict=True):
            flat(root / task, split, **{name: size})
