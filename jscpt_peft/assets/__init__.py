"""Files that come with the package."""

from __future__ import annotations

from pathlib import Path

TINY_CLIP: Path = Path(__file__).parent / "tiny-clip"
"""A small CLIP in transformers format, the default base of `shapes`; its README.md says how it was made."""
