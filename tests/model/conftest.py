"""The prompted CLIP of most tests here, and images of all its tasks."""

from __future__ import annotations

from collections.abc import Iterator

import prompted
import pytest

OUTCOMES = pytest.StashKey[dict[str, dict[str, bool]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remembers which parametrised tests passed."""
    report = yield
    if hasattr(item, "callspec") and (report.when == "call" or report.failed):
        found = item.config.stash.setdefault(OUTCOMES, {}).setdefault(item.originalname, {})
        found[item.callspec.params.get("name")] = report.passed
    return report


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> dict[str, dict[str, bool]]:
    """Test -> its parameter `name` -> whether it has passed in this session."""
    return request.config.stash.get(OUTCOMES, {})


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
