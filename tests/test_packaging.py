"""What is installed: the version, the files of the wheel, and the dependencies with their tested versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zlib
from importlib.metadata import packages_distributions

import pytest
from house_rules import imported_names, modules
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

import jscpt_peft

PACKAGE = ROOT / "jscpt_peft"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dependencies(pyproject) -> dict[str, Requirement]:
    return by_name(pyproject["project"]["dependencies"])


def by_name(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def test_version_is_stated_once(pyproject):
    assert pyproject["project"]["version"] == jscpt_peft.__version__


def test_licence_and_readme_are_there(pyproject):
    for name in [pyproject["project"]["readme"], *pyproject["project"]["license-files"]]:
        assert (ROOT / name).is_file(), name
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text(encoding="utf-8")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_wheel_holds_the_package_with_everything_in_it_and_is_small(pyproject):
    # Hatchling takes all that is below `packages` and not ignored by git; an `exclude` could leave something out.
    assert pyproject["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["jscpt_peft"]}
    assert "exclude" not in pyproject["tool"]["hatch"]["build"]
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) < MEGABYTE
    assert PACKAGE / "py.typed" in files


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_git_ignores_no_file_of_the_package():
    files = [str(file) for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    check = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(files),
        capture_output=True,
        text=True,
        check=False,  # 1 says that none is ignored
    )
    assert (check.returncode, check.stdout, check.stderr) == (1, "", "")


def test_source_archive_names_only_what_exists(pyproject):
    included = pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in included if not (ROOT / name).exists()] == []
    assert {"jscpt_peft", "recipes", "tests"} <= set(included)


# ---- dependencies ---------------------------------------------------------------------------------------------------


def test_every_import_of_the_package_is_a_declared_dependency(pyproject, dependencies):
    own = {"jscpt_peft", *sys.stdlib_module_names}
    imported = {name.partition(".")[0] for file in modules(PACKAGE) for name, _ in imported_names(file, ROOT)} - own
    distributions = packages_distributions()
    declared = {**dependencies, **by_name(pyproject["project"]["optional-dependencies"]["aggregators"])}
    undeclared = {
        module
        for module in imported
        if not {canonicalize_name(name) for name in distributions.get(module, [module])} & set(declared)
    }
    assert {"torch", "PIL"} <= imported  # else nothing was looked at
    assert undeclared == set()


def test_every_dependency_is_pinned_to_a_version_that_it_allows(pyproject, dependencies):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = by_name([line for line in lines if line and not line.startswith("#")])
    assert all([each.operator for each in pin.specifier] == ["=="] for pin in pins.values())

    extras = pyproject["project"]["optional-dependencies"].values()
    wanted = {**dependencies, **by_name([line for extra in extras for line in extra])}
    del wanted["jscpt-peft"]  # `dev` includes `test` by naming the package itself
    assert set(wanted) - set(pins) == set()
    versions = {name: next(iter(pins[name].specifier)).version for name in wanted}
    assert {n: v for n, v in versions.items() if not wanted[n].specifier.contains(v)} == {}
