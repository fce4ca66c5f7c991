"""Images that the tests of recipes share.

Recipes leave empty files for figures: `tests/evaluation` draws them, and so does every program that is started.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import reproduced_figures
from recipe_runs import draw_images

from jscpt_peft.evaluation import evaluation_figures, history_figures


def leave_empty(output_dir, makers) -> list[Path]:
    """In the place of `write_figures`, which takes a second."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    paths = [Path(output_dir, name) for name in makers]
    for path in paths:
        path.touch()
    return paths


@pytest.fixture(autouse=True, scope="module")
def _no_drawing():
    with pytest.MonkeyPatch.context() as patch:
        for module in (history_figures, evaluation_figures, reproduced_figures):
            patch.setattr(module, "write_figures", leave_empty)
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder that no test changes."""
    return draw_images(tmp_path_factory.mktemp("images"), count=14)
