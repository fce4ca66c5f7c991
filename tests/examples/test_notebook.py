"""`examples/train_shapes.ipynb` runs from top to bottom, with fewer steps and test images.

In IPython, as in a Jupyter kernel but without its process; figures are drawn, not laid out.
"""

from __future__ import annotations

import sys

import fork_server
import nbformat
import pytest
from paths import ROOT

NOTEBOOK = ROOT / "examples" / "train_shapes.ipynb"
SHORTER = {"num_train_epochs=4": "max_steps=2, lower_steps=2", "seed=1)": "seed=1, test_per_class=2)"}
# The cells as a kernel runs them, in a process that need not import everything first; prints how many images it shows.
PROGRAM = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

InteractiveShell.enable_gui = lambda *_: None  # that of `%matplotlib inline`
shell, images = InteractiveShell.instance(), 0
shell.history_manager.enabled = False
for source in sys.argv[1:]:
    with capture_output() as captured:
        result = shell.run_cell(source)
    result.raise_error()
    images += sum("image/png" in each.data for each in captured.outputs)
print(images)
"""


def test_no_outputs_are_stored():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.slow
def test_notebook():
    sources = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    for written, used in SHORTER.items():
        assert any(written in source for source in sources)
        sources = [source.replace(written, used) for source in sources]
    done = fork_server.run([sys.executable, "-c", PROGRAM, *sources], cwd=NOTEBOOK.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.splitlines()[-1]) >= 5
