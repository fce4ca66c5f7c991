"""Files are short; who may import whom is `make lint`'s affair (import-linter, contracts in pyproject.toml)."""

from __future__ import annotations

from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).parent.parent / "jscpt_peft"


def test_files_are_short():
    lines = {
        str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 300} == {}
    assert median(lines.values()) <= 110
