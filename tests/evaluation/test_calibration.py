from __future__ import annotations

import math

import numpy as np
import pytest

from jscpt_peft.evaluation import reliability


def slow_error(confidences, correct, bins):
    """The definition, bin by bin: confidences in (m / M, (m + 1) / M], the first bin with its lower end."""
    total = 0.0
    for m in range(bins):
        inside = [i for i, c in enumerate(confidences) if m / bins < c <= (m + 1) / bins or (m == 0 and c == 0)]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


def test_by_hand():
    # Ten bins. (0.8, 0.9]: 0.85 and 0.89, one of them right; (0.9, 1]: 1.0, wrong; (0.3, 0.4]: 0.4, right.
    found = reliability([0.85, 0.89, 1.0, 0.4], [True, False, False, True], num_bins=10)
    assert found.counts.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 2, 1]
    assert found.accuracies[[3, 8, 9]].tolist() == [1.0, 0.5, 0.0]
    assert found.confidences[8] == pytest.approx(0.87)
    assert np.isnan(found.accuracies[0])
    assert found.expected_calibration_error == pytest.approx((0.6 + 2 * 0.37 + 1.0) / 4)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_equals_the_definition(bins):
    rng = np.random.default_rng(bins)
    confidences = np.concatenate([rng.uniform(0, 1, 40), [0.0, 1.0, 0.25, 0.5]])
    correct = rng.random(44) < 0.6
    found = reliability(confidences, correct, num_bins=bins)
    expected = slow_error(confidences.tolist(), correct.tolist(), bins)
    assert found.expected_calibration_error == pytest.approx(expected, abs=1e-12)
    assert found.counts.sum() == 44
    assert math.isnan(reliability([], [], num_bins=bins).expected_calibration_error)


@pytest.mark.parametrize(
    ("confidences", "correct", "message"),
    [
        ([0.5, 1.5], [True, True], "`confidences` holds 1.5"),
        ([0.5, math.nan], [True, True], "`confidences` holds nan"),
        ([0.5], [True, True], r"`confidences` has shape \(1,\), `correct` \(2,\)"),
    ],
)
def test_bad_input_is_named(confidences, correct, message):
    with pytest.raises(ValueError, match=message):
        reliability(confidences, correct)
