"""Where things are in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT: Path = Path(__file__).resolve().parent.parent
RECIPES: Path = ROOT / "recipes"
TINY_CLIP: Path = RECIPES / "assets" / "tiny-clip"
"""A small pretrained CLIP in transformers format; its README.md says how it was made."""
