"""Where things are in the repository, and recipes as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT: Path = Path(__file__).resolve().parent.parent
RECIPES: Path = ROOT / "recipes"
TINY_CLIP: Path = RECIPES / "assets" / "tiny-clip"
"""A small pretrained CLIP in transformers format; its README.md says how it was made."""


def load_recipe(name: str) -> ModuleType:
    """The module of `recipes/<name>.py`, whatever else bears its name, as `evaluate` and `benchmark` may."""
    specification = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module
