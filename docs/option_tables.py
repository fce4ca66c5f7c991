"""Hooks of mkdocs: tables of options, made from the dataclasses, so that a new field appears by itself.

A line `<!-- options: package.module.Class -->` in a page becomes a table of the fields that the class itself declares,
and `<!-- methods -->` a table of the methods.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
OPTIONS = re.compile(r"<!-- options: (\S+)\.(\w+) -->")
METHODS_MARKER = "<!-- methods -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of every page."""
    markdown = OPTIONS.sub(lambda found: option_table(*found.groups()), markdown)
    return markdown.replace(METHODS_MARKER, method_table()) if METHODS_MARKER in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs with every page as HTML: docstrings name objects in brackets, as PEFT's do."""
    return re.sub(r"\[(<code>[\w.]+</code>)\](?!\()", r"\1", html)


def option_table(module: str, name: str) -> str:
    """A Markdown table with the name, default and help of every field that a dataclass declares itself."""
    if str(RECIPES) not in sys.path:
        sys.path.append(str(RECIPES))
    options = getattr(importlib.import_module(module), name)
    fields = {field.name: field for field in dataclasses.fields(options)}
    own = [fields[each] for each in options.__annotations__ if each in fields]
    rows = [f"| `{field.name}` | {_default(field)} | {_cell(field.metadata['help'])} |" for field in own]
    return "\n".join(["| option | default | meaning |", "|:---|:---|:---|", *rows])


def method_table() -> str:
    """A Markdown table with the fields that make each method."""
    from jscpt_peft.methods import METHODS

    lines = ["| name | method | made by | parameters |", "|:---|:---|:---|---:|"]
    for name, method in METHODS.items():
        settings = {**method.structure, **method.paper, **method.training, **method.paper_training}
        made_by = ", ".join(f"`{field}={value!r}`" for field, value in settings.items())
        parameters = "" if method.published_parameters is None else f"{method.published_parameters:,d}"
        lines.append(f"| `{name}` | {_cell(method.summary)} | {_cell(made_by)} | {parameters} |")
    return "\n".join(lines)


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "required" if field.default is dataclasses.MISSING else _cell(f"`{field.default!r}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
