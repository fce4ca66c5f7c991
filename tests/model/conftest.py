"""The prompted CLIP of most tests here, and images of all its tasks."""

from __future__ import annotations

import prompted
import pytest


@pytest.fixture
def model():
    """In float64, with three tasks."""
    return prompted.prompted_clip()


@pytest.fixture
def batch(model):
    """Images, task ids and labels."""
    return prompted.batch(model)


@pytest.fixture
def pixels(batch):
    """The images alone."""
    return batch[0]
