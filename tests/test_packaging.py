"""What is installed: the version, the files of the wheel, the dependencies; what importing it costs and changes."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tomllib
import zlib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

import jscpt_peft

PACKAGE = ROOT / "jscpt_peft"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["tool"]["hatch"]["build"]
EXTRAS = PROJECT["optional-dependencies"]
HEAVY = {"datasets", "evaluate", "matplotlib", "pandas", "pyarrow", "torchjd", "transformers.trainer"}
HEAVY |= {"jscpt_peft.training", "jscpt_peft.evaluation"}


def by_name(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def test_version_licence_and_readme():
    assert PROJECT["version"] == jscpt_peft.__version__
    for name in [PROJECT["readme"], *PROJECT["license-files"]]:
        assert (ROOT / name).is_file(), name


# ---- files ----------------------------------------------------------------------------------------------------------


def test_wheel_holds_the_package_with_everything_in_it_and_is_small():
    # Hatchling takes all that is below `packages` and not ignored by git; an `exclude` could leave something out.
    assert BUILD["targets"]["wheel"] == {"packages": ["jscpt_peft"]}
    assert "exclude" not in BUILD
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) < 1_000_000
    assert PACKAGE / "py.typed" in files
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "check-ignore", "--no-index", *map(str, files)]
        check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (check.returncode, check.stdout) == (1, ""), check.stderr  # 1 says that none is ignored


def test_source_archive_names_only_what_exists():
    included = BUILD["targets"]["sdist"]["include"]
    assert [name for name in included if not (ROOT / name).exists()] == []
    assert {"jscpt_peft", "recipes", "tests", "tools"} <= set(included)


# ---- dependencies ---------------------------------------------------------------------------------------------------


def test_every_import_of_the_package_is_a_declared_dependency():
    nodes = [node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    imported = {name.partition(".")[0] for name in names} - {"jscpt_peft", *sys.stdlib_module_names}
    assert {"torch", "PIL"} <= imported  # else nothing was looked at
    distributions = packages_distributions()
    declared = set(by_name([*PROJECT["dependencies"], *EXTRAS["aggregators"]]))
    for module in imported:
        assert declared & {canonicalize_name(name) for name in distributions.get(module, [module])}, module


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = by_name([line for line in lines if line and not line.startswith("#")])
    assert all([each.operator for each in pin.specifier] == ["=="] for pin in pins.values())
    wanted = by_name([*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)])
    del wanted["jscpt-peft"]  # an extra includes another one by naming the package itself
    assert set(wanted) - set(pins) == set()
    versions = {name: next(iter(pins[name].specifier)).version for name in wanted}
    assert {n: v for n, v in versions.items() if not wanted[n].specifier.contains(v)} == {}


# ---- importing ------------------------------------------------------------------------------------------------------

IMPORTS = """
import json, sys, time
start = time.perf_counter()
import peft
of_peft = time.perf_counter() - start

import torch
def hooks():
    return {name: len(value) for name, value in vars(torch.nn.modules.module).items()
            if name.startswith("_global_") and hasattr(value, "__len__")}
def classes():
    found = {(m, name): value for m in (peft, torch.nn) for name, value in vars(m).items() if isinstance(value, type)}
    return {key: (value, dict(vars(value))) for key, value in found.items() if key[1] != "PeftType"}  # a member more
before = hooks(), classes()

start = time.perf_counter()
import jscpt_peft
further = time.perf_counter() - start
assert (hooks(), classes()) == before, "importing the package has changed torch or peft"
import jscpt_peft.data, jscpt_peft.scheduling
print(json.dumps([of_peft, further, sorted(sys.modules)]))
"""


@pytest.mark.slow
def test_import_takes_little_more_than_that_of_peft_and_changes_nothing():
    ratios = []
    while len(ratios) < 3 and min(ratios, default=2) > 1.2:  # the machine may have been busy with something else
        # A process of its own: only there nothing is imported yet.
        run = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        of_peft, further, imported = json.loads(run.stdout)
        assert set(imported) & HEAVY == set()
        ratios.append((of_peft + further) / of_peft)
    assert min(ratios) <= 1.2, ratios
