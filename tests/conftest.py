"""Fixtures that several packages' tests share."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests must never look for a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors here are tiny: threads would only wait for each other

import pytest
import shortcuts  # noqa: F401
import torch
from paths import RECIPES

sys.path.append(str(RECIPES))  # last: recipes/evaluate.py bears the name of a library


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with one at the end (see the Makefile)."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same random state and number of threads, whatever the one before has set."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)


def pytest_collection_finish():
    """Every training run collects garbage: not among what all these imports have made, which takes 0.3 seconds."""
    gc.collect()
    gc.freeze()
