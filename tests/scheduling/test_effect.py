from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from jscpt_peft.scheduling import NEUTRAL_EFFECT, causal_effect


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_equation_4_by_hand():
    original, selected = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 1.5])
    literal = torch.tensor([sigmoid(math.e), sigmoid(1), sigmoid(1 / math.e)])
    assert_close(causal_effect(original, selected), literal)
    assert_close(causal_effect(original, selected, kind="literal"), literal)
    intended = torch.tensor([sigmoid(1), 0.5, sigmoid(-1)])
    assert_close(causal_effect(original, selected, kind="sigmoid"), intended)


@pytest.mark.parametrize("kind", ["literal", "sigmoid"])
def test_neutral_point_parts_better_from_worse(kind):
    one = torch.ones(1)
    assert causal_effect(one, one, kind).item() == pytest.approx(NEUTRAL_EFFECT[kind], abs=1e-7)
    assert causal_effect(one, one - 0.1, kind).item() > NEUTRAL_EFFECT[kind]
    assert causal_effect(one, one + 0.1, kind).item() < NEUTRAL_EFFECT[kind]


@pytest.mark.parametrize("difference", [1e4, -1e4, math.inf, -math.inf])
def test_literal_effect_neither_overflows_nor_leaves_its_range(difference):
    original = torch.tensor([difference], requires_grad=True)
    effect = causal_effect(original, torch.zeros(1))
    (gradient,) = torch.autograd.grad(effect.sum(), original)
    assert_close(effect, torch.tensor([sigmoid(math.exp(math.copysign(10, difference)))]))
    assert 0.5 < effect.item() <= 1 and gradient.isfinite().all()


def test_absent_tasks_stay_nan_and_alone():
    effect = causal_effect(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
    assert effect.isnan().tolist() == [False, True]


def test_a_typo_is_named_with_the_nearest_kind():
    with pytest.raises(ValueError, match=r"`kind` must be one of 'literal', 'sigmoid', got 'sigmoidal'.*'sigmoid'\?"):
        causal_effect(torch.ones(1), torch.ones(1), kind="sigmoidal")


def test_losses_of_different_tasks_are_refused():
    with pytest.raises(ValueError, match=r"`loss_original` and `loss_selected`.*\(3,\) and \(1,\)"):
        causal_effect(torch.ones(3), torch.ones(1))
