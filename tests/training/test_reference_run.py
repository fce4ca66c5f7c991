"""Training gives what it gave before the redesign: parameters, Ω and history."""

from __future__ import annotations

import pytest
import reference_run
import torch
from safetensors.torch import load_file


@pytest.mark.parametrize("run", reference_run.RUNS)
def test_a_run_is_the_recorded_one(run):
    recorded = {
        name.removeprefix(f"{run}/"): each
        for name, each in load_file(reference_run.RECORD).items()
        if name.startswith(f"{run}/")
    }
    trained = reference_run.train(**reference_run.RUNS[run])
    assert trained.keys() == recorded.keys()
    for name, expected in recorded.items():
        torch.testing.assert_close(trained[name], expected, atol=1e-10, rtol=1e-10, equal_nan=True, msg=name)
