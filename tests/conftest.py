"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests must never look for a network

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
