"""The emoji task set as its pictures were first published: which emoji has which class and split."""

from __future__ import annotations

from pathlib import Path

from emoji_split import Emoji


def published() -> list[tuple[Emoji, str]]:
    """Every emoji, named after its code points, with its split."""
    # category, class, split, code points: tab-separated
    facts = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return [
        (Emoji(code_points.lower(), code_points, category, class_name), split)
        for category, class_name, split, members in (line.split("\t") for line in facts.splitlines())
        for code_points in members.split()
    ]
