"""What the documentation says: its pages, code blocks and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROGRAM = re.compile(r"(recipes|tools|examples)/(\w+)\.py")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page that starts a program of this repository."""
    spans = re.findall(r"`((?:python|accelerate launch) [^`]+)`", page.read_text(encoding="utf-8"))
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for line in lines + [span.replace("\n", " ") for span in spans]:
        words = shlex.split(line, comments=True)
        if any(PROGRAM.fullmatch(word) for word in words):
            yield words


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
