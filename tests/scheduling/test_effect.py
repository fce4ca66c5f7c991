"""Eq. 4 by hand, its neutral point and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from jscpt_peft.scheduling import NEUTRAL_EFFECT, causal_effect


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


EXPECTED = {  # better by 1, equal, worse by 1, absent
    "literal": [sigmoid(math.e), sigmoid(1), sigmoid(1 / math.e), math.nan],
    "sigmoid": [sigmoid(1), 0.5, sigmoid(-1), math.nan],
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_equation_4_by_hand(kind):
    original, selected = torch.tensor([2.0, 1.0, 0.5, math.nan]), torch.tensor([1.0, 1.0, 1.5, math.nan])
    effect = causal_effect(original, selected, kind)
    assert_close(effect, torch.tensor(EXPECTED[kind]), equal_nan=True)
    assert effect[1].item() == pytest.approx(NEUTRAL_EFFECT[kind])
    if kind == "literal":
        assert torch.equal(causal_effect(original[:3], selected[:3]), effect[:3])  # the default


@pytest.mark.parametrize("difference", [1e4, -1e4, math.inf, -math.inf])
def test_literal_effect_neither_overflows_nor_leaves_its_range(difference):
    original = torch.tensor([difference], requires_grad=True)
    effect = causal_effect(original, torch.zeros(1))
    (gradient,) = torch.autograd.grad(effect.sum(), original)
    assert_close(effect, torch.tensor([sigmoid(math.exp(math.copysign(10, difference)))]))
    assert 0.5 < effect.item() <= 1 and gradient.isfinite().all()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`kind` must be one of 'literal', 'sigmoid', got 'sigmoidal'.*'sigmoid'\?"):
        causal_effect(torch.ones(1), torch.ones(1), kind="sigmoidal")
    with pytest.raises(ValueError, match=r"`loss_original` and `loss_selected`.*\(3,\) and \(1,\)"):
        causal_effect(torch.ones(3), torch.ones(1))
