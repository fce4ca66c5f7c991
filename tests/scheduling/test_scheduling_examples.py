"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest
import torch


@pytest.mark.parametrize("module", ["affinity", "effect", "scheduler"])
def test_docstring_examples(module):
    result = doctest.testmod(import_module(f"jscpt_peft.scheduling.{module}"), extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0
