"""README and docs: length, links, code that compiles, and options that exist."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest
from arguments import RecipeParser
from documents import PAGES, README, blocks, prose
from evaluated_model import EvaluatedModelArguments
from model_arguments import ModelArguments
from paths import ROOT, load_recipe
from task_data import DataArguments

from jscpt_peft.methods import METHODS

sys.path.append(str(ROOT / "docs"))
import option_tables

PATH = re.compile(r"(?<![\w/-])(?:tests|recipes|tools|examples|jscpt_peft)/[\w./-]*\w")
OF_OTHERS = {"--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--logdir"}
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_quickstart_has_15_lines():
    quickstart = blocks(README, "python")[0]
    assert len([line for line in quickstart.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page)):
        assert re.match("https?:", link) or (page.parent / link).exists(), link


def known_options() -> set[str]:
    sources = [file for folder in ("recipes", "tools", "examples") for file in (ROOT / folder).glob("*.py")]
    added = {name for file in sources for name in re.findall(r'"(--\w+)"', file.read_text(encoding="utf-8"))}
    kinds = [DataArguments, ModelArguments, EvaluatedModelArguments]
    kinds += [load_recipe("evaluate").EvaluationArguments, load_recipe("benchmark").BenchmarkArguments]
    return added.union(OF_OTHERS, *(RecipeParser(each)._option_string_actions for each in kinds))


def test_options_in_the_text_exist():
    named = {name for page in PAGES for name in re.findall(r"`(--\w+)", prose(page))}
    assert len(named) > 30
    assert named - known_options() == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = set(PATH.findall(page.read_text(encoding="utf-8")))
    assert {name for name in named if not (ROOT / name).exists()} == set()


# ---- tables of options ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Options:
    new: str | None = dataclasses.field(default=None, metadata={"help": "one | other."})


def test_a_new_field_appears_by_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "some_options", sys.modules[__name__])
    text = option_tables.on_page_markdown("before\n\n<!-- options: some_options.Options -->\n")
    assert text.endswith("|:---|:---|:---|\n| `new` | `None` | one \\| other. |\n")


def test_every_method_is_in_the_table():
    table = option_tables.method_table()
    assert all(f"| `{name}` |" in table for name in METHODS)
