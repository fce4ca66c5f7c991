"""The floors of the house: who may import whom, and what every file of the package owes its reader."""

from __future__ import annotations

from pathlib import Path

import house_rules as rules
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jscpt_peft"
TESTS = ROOT / "tests"


# ---- the house ------------------------------------------------------------------------------------------------------


def test_floors_are_those_of_the_house():
    assert {rules.floor(PACKAGE, file) for file in rules.modules(PACKAGE)} == {"__init__", *rules.FLOORS}


def test_imports_go_downwards():
    assert rules.forbidden_imports(PACKAGE) == []


def test_package_knows_neither_recipes_nor_tests():
    assert rules.imports_from_outside(PACKAGE, TESTS) == []


def test_data_knows_no_networks():
    assert rules.uses_of_torch_nn(PACKAGE) == []


def test_one_file_touches_the_registry_of_peft():
    assert rules.uses_of_the_peft_registry(PACKAGE) == []


def test_files_are_short():
    assert rules.long_files(PACKAGE) == []


def test_every_package_has_tests():
    assert rules.untested_packages(PACKAGE, TESTS) == []


# ---- the checks themselves, on a small house ------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A package in order, with a floor for every name in `FLOORS`."""
    package = tmp_path / "jscpt_peft"
    good = {
        "__init__.py": "from .model import x",
        "choices.py": "import difflib",
        "data/__init__.py": "from .task import Task\nimport torch\nfrom jscpt_peft.choices import nearest",
        "data/task.py": "from ..choices import nearest\nimport torch.nnpack\nnn = 1",
        "model/__init__.py": "from jscpt_peft.data import Task\nfrom torch import nn",
        "model/registration.py": "from peft.utils import register_peft_method\nPeftType._member_map_[1] = 2",
        "scheduling/__init__.py": "from .effect import x",
        "scheduling/effect.py": "from torch import nn",
        "evaluation/__init__.py": "import jscpt_peft.scheduling",
        "training/__init__.py": "from jscpt_peft import evaluation, scheduling\nfrom . import trainer",
        "training/trainer.py": "",
    }
    for name, text in good.items():
        write(package / name, f'"""What it is."""\n{text}\n')
    for name in ("data", "evaluation", "model", "scheduling", "training"):
        write(tmp_path / "tests" / name / f"test_{name}.py", "")
    write(tmp_path / "tests" / "oracles.py", "")
    write(tmp_path / "recipes" / "benchmark.py", "")
    return package


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_a_house_in_order_has_no_findings(house):
    assert rules.findings(house, house.parent / "tests") == []


@pytest.mark.parametrize(
    ("file", "line", "finding"),
    [
        ("data/task.py", "from jscpt_peft.model import x", "task.py:2: `data` must not import `jscpt_peft.model.x`"),
        ("data/task.py", "from ..model.config import x", "`data` must not import `jscpt_peft.model.config.x`"),
        ("data/task.py", "from jscpt_peft import JSCPTConfig", "`data` must not import `jscpt_peft.JSCPTConfig`"),
        ("data/task.py", "import jscpt_peft", "`data` must not import `jscpt_peft`"),
        ("data/task.py", "def f():\n    from .. import training", "`data` must not import `jscpt_peft.training`"),
        ("choices.py", "from .data import x", "choices.py:2: `choices` must not import `jscpt_peft.data.x`"),
        ("scheduling/affinity.py", "import jscpt_peft.data", "`scheduling` must not import `jscpt_peft.data`"),
        ("model/layer.py", "from jscpt_peft.training import x", "`model` must not import `jscpt_peft.training.x`"),
        ("evaluation/card.py", "from ..training import x", "`evaluation` must not import `jscpt_peft.training.x`"),
        ("cellar.py", "", "cellar.py:1: `cellar` is no floor"),
        ("training/loop.py", "import recipes.train", "training/loop.py:2: imports `recipes.train`"),
        ("__init__.py", "from tests.oracles import x", "__init__.py:2: imports `tests.oracles.x`"),
        ("model/layer.py", "from oracles import x", "model/layer.py:2: imports `oracles.x`"),
        ("training/loop.py", "from benchmark import x", "training/loop.py:2: imports `benchmark.x`"),
        ("data/folder.py", "from torch import nn", "data/folder.py:2"),
        ("data/folder.py", "from torch.nn.functional import pad", "data/folder.py:2"),
        ("data/folder.py", "import torch\ntorch.nn.functional.pad", "data/folder.py:3"),
        ("model/config.py", "PeftType._member_map_", "model/config.py:2: touches `_member_map_`"),
        ("__init__.py", "from peft.utils import register_peft_method", "__init__.py:2: imports `peft.utils.register"),
        ("model/long.py", "\n" * rules.MOST_LINES, f"model/long.py:{rules.MOST_LINES + 2}"),
    ],
)
def test_a_fault_is_found(house, file, line, finding):
    write(house / file, f'"""What it is."""\n{line}\n')
    found = rules.findings(house, house.parent / "tests")
    assert len(found) == 1
    assert finding in found[0]


def test_a_package_without_tests_is_found(house):
    (house.parent / "tests" / "scheduling" / "test_scheduling.py").unlink()
    assert rules.findings(house, house.parent / "tests") == ["scheduling"]
