"""Rules that hold for every file of the package, read from the syntax trees: nothing is executed.

A rule takes the package's folder and returns what breaks it, one line a place; `test_architecture.py` applies them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# A floor may import the floors named beside it, and nothing else of the package. The package's own `__init__` is the
# roof: it may import all of them, and none of them may import it.
FLOORS = {
    "choices": (),
    "data": ("choices",),
    "model": ("choices", "data"),
    "scheduling": ("choices",),
    "evaluation": ("choices", "data", "model", "scheduling"),
    "serving": ("choices", "data", "model"),
    "training": ("choices", "data", "model", "scheduling", "evaluation", "serving"),
}

# What PEFT has no public way to do, and `register_peft_method`, which belongs beside it.
PEFT_REGISTRY = {
    "_member_map_",
    "_member_names_",
    "_value2member_map_",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "register_peft_method",
}

MOST_LINES = 300


def syntax_tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imported_names(file: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that `file` imports anywhere in it, with their lines.

    `from a.b import c` gives `a.b.c`, which may be a module or something in one; relative imports are resolved.

    Args:
        file: a module below `root`.
        root: the folder that is on the import path.
    """
    package = file.relative_to(root).parent.parts
    for node in ast.walk(syntax_tree(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def modules(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def place(package: Path, file: Path, line: int) -> str:
    return f"{file.relative_to(package.parent)}:{line}"


def floor(package: Path, file: Path) -> str:
    """`data` for `data/task.py`, `choices` for `choices.py`."""
    return file.relative_to(package).with_suffix("").parts[0]


def forbidden_imports(package: Path) -> list[str]:
    """Imports within the package that go upwards, or from a floor that `FLOORS` does not know."""
    found = []
    for file in modules(package):
        here = floor(package, file)
        if here == "__init__":
            continue
        if here not in FLOORS:
            found.append(f"{place(package, file, 1)}: `{here}` is no floor; give it a place in FLOORS")
            continue
        for name, line in imported_names(file, package.parent):
            top, _, rest = name.partition(".")
            there = rest.partition(".")[0]
            if top == package.name and there not in (here, *FLOORS[here]):
                found.append(f"{place(package, file, line)}: `{here}` must not import `{name}`")
    return found


def imports_from_outside(package: Path, tests: Path) -> list[str]:
    """Imports of recipes, tools, tests or of modules beside them, none of which is installed with the package."""
    folders = (tests, *(tests.parent / name for name in ("recipes", "tools")))
    outside = {name for folder in folders for name in (folder.name, *(file.stem for file in folder.glob("*.py")))}
    outside.discard("evaluate")  # evaluation/metric.py means the library of that name
    return [
        f"{place(package, file, line)}: imports `{name}`"
        for file in modules(package)
        for name, line in imported_names(file, package.parent)
        if name.partition(".")[0] in outside
    ]


def uses_of_torch_nn(package: Path) -> list[str]:
    """Where `data` touches `torch.nn`: it knows images and tensors, but no networks."""
    found = []
    for file in modules(package / "data"):
        imports = [line for name, line in imported_names(file, package.parent) if f"{name}.".startswith("torch.nn.")]
        attributes = [
            node.lineno
            for node in ast.walk(syntax_tree(file))
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.nn"
        ]
        found += [place(package, file, line) for line in imports + attributes]
    return found


def uses_of_the_peft_registry(package: Path) -> list[str]:
    """Where anything but `model/registration.py` touches PEFT's registry of methods."""
    found = []
    for file in modules(package):
        if file == package / "model" / "registration.py":
            continue
        found += [
            f"{place(package, file, line)}: imports `{name}`"
            for name, line in imported_names(file, package.parent)
            if name.rpartition(".")[2] in PEFT_REGISTRY
        ]
        found += [
            f"{place(package, file, node.lineno)}: touches `{node.attr}`"
            for node in ast.walk(syntax_tree(file))
            if isinstance(node, ast.Attribute) and node.attr in PEFT_REGISTRY
        ]
    return found


def long_files(package: Path) -> list[str]:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in modules(package)}
    return [place(package, file, length) for file, length in lengths.items() if length > MOST_LINES]


def untested_packages(package: Path, tests: Path) -> list[str]:
    """Packages that hold modules, but have no test file in the folder of their name below `tests`."""
    packages = sorted({module.parent.name for module in package.glob("*/*.py") if module.name != "__init__.py"})
    return [name for name in packages if not any((tests / name).glob("test_*.py"))]


def findings(package: Path, tests: Path) -> list[str]:
    return [
        *forbidden_imports(package),
        *imports_from_outside(package, tests),
        *uses_of_torch_nn(package),
        *uses_of_the_peft_registry(package),
        *long_files(package),
        *untested_packages(package, tests),
    ]
