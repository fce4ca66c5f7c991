"""The examples in the package's docstrings run and print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest
import torch
from paths import ROOT

import jscpt_peft.scheduling
from jscpt_peft.model.prompts import PromptSource

# What needs packages that may be missing, or is shown rather than run.
LEFT_OUT = {"jscpt_peft.data.load", "jscpt_peft.evaluation.metric"}
WITH_EXAMPLES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "jscpt_peft").rglob("*.py")
    if ">>>" in path.read_text("utf-8")
}


@pytest.mark.parametrize("module", sorted(WITH_EXAMPLES - LEFT_OUT))
def test_examples(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # one of them writes a file
    if module.endswith("gramian"):
        pytest.importorskip("torchjd", reason="needs the extra `aggregators`")
    names = {**vars(jscpt_peft.scheduling), "PromptSource": PromptSource, "torch": torch}
    result = doctest.testmod(import_module(module), extraglobs=names)
    assert result.attempted > 0 and result.failed == 0
