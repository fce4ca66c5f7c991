"""The scheduler of gradient cosines and loss levels against plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from jscpt_peft.scheduling import LossCosineScheduling, StepSignals

GRADIENTS = torch.tensor([[1.0, 0.0, 0.5], [0.8, 0.6, 0.0], [-1.0, 2.0, 0.0]]).double()
LOSSES = [1.5, 0.5, 2.5]
ALPHA, BETA = [1.5, 0.3, 2.0], [0.7, 4.0, -1.1]


def plainly(present: tuple[bool, ...], normalization: str) -> list[float]:
    here = [task for task, each in enumerate(present) if each]
    mean = sum(LOSSES[task] for task in here) / len(here) if here else 1
    weights = [0.0] * len(present)
    for i in here:
        cosines = [float(torch.cosine_similarity(GRADIENTS[i], GRADIENTS[j], 0)) for j in here if j != i]
        agreement = sum(cosines) / len(cosines) if cosines else 0
        weights[i] = math.exp(ALPHA[i] * agreement + BETA[i] * (LOSSES[i] / mean - 1))
    scale = len(here) / sum(weights) if here and normalization == "sum" else 1
    return [scale * weight for weight in weights]


@pytest.mark.parametrize("normalization", ["sum", "none"])
def test_weights_for_every_set_of_tasks(normalization):
    weighting = LossCosineScheduling(3, normalization).double()
    weighting.load_state_dict({"alpha": torch.tensor(ALPHA), "beta": torch.tensor(BETA)})
    for present in itertools.product([True, False], repeat=3):
        usable = torch.tensor(present)
        losses = torch.tensor(LOSSES).double().masked_fill(~usable, torch.nan)
        gradients = GRADIENTS.masked_fill(~usable[:, None], 0)
        weights = weighting(StepSignals(1, usable, losses, gramian=gradients @ gradients.T))
        assert weights.tolist() == pytest.approx(plainly(present, normalization), rel=1e-6)
        if any(present):
            given = torch.autograd.grad(weights @ torch.tensor([1.0, 2.0, 4.0]).double(), [*weighting.parameters()])
            assert all(bool(each.isfinite().all()) for each in given)
