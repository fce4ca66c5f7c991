"""`examples/train_shapes.ipynb` runs from top to bottom, with fewer steps and test images."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT

NOTEBOOK = ROOT / "examples" / "train_shapes.ipynb"
SHORTER = {"num_train_epochs=4": "max_steps=2, lower_steps=2", "seed=1)": "seed=1, test_per_class=2)"}


def test_no_outputs_are_stored():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.slow
def test_notebook(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for written, used in SHORTER.items():
            cell.source = cell.source.replace(written, used)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
