from __future__ import annotations

import math

import numpy as np
import pytest

from jscpt_peft.evaluation import confusion_matrix, macro_f1
from jscpt_peft.evaluation.confusion import confused_pairs, most_confused_classes


def slow_macro_f1(predictions, references):
    """From precision and recall, class by class."""
    scores = []
    for each in sorted({*predictions, *references}):
        hits = sum(p == r == each for p, r in zip(predictions, references, strict=True))
        predicted, actual = predictions.count(each), references.count(each)
        precision, recall = hits / predicted if predicted else 0.0, hits / actual if actual else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(scores) / len(scores)


def test_by_hand():
    # true: a a a b b c; predicted: a a b b c c (of four classes, d does not occur)
    matrix = confusion_matrix([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2], num_classes=4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    # F1: a 2·2/(2+3) = 0.8, b 2·1/(2+2) = 0.5, c 2·1/(2+1) = 2/3
    assert macro_f1(matrix) == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert confused_pairs(matrix, 5) == [(0, 1, 1), (1, 2, 1)]


def test_equals_the_definition():
    predictions, references = np.random.default_rng(0).integers(0, 7, (2, 25)).tolist()
    matrix = confusion_matrix(predictions, references, num_classes=9)
    for true in range(9):
        for predicted in range(9):
            pairs = zip(predictions, references, strict=True)
            assert matrix[true, predicted] == sum(p == predicted and r == true for p, r in pairs)
    assert macro_f1(matrix) == pytest.approx(slow_macro_f1(predictions, references), abs=1e-12)
    assert math.isnan(macro_f1(confusion_matrix([], [], num_classes=3)))


def test_most_confused_classes_are_those_of_the_worst_pairs():
    matrix = np.diag([9] * 345)
    matrix[300, 7] = 5
    matrix[2, 300] = 4
    matrix[50, 60] = 3
    assert confused_pairs(matrix, 2) == [(300, 7, 5), (2, 300, 4)]
    assert most_confused_classes(matrix, 3) == [2, 7, 300]
    assert most_confused_classes(matrix, 5) == [2, 7, 50, 60, 300]
    assert most_confused_classes(matrix, 7) == [0, 1, 2, 7, 50, 60, 300]
    assert most_confused_classes(np.diag([1, 1]), 20) == [0, 1]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0, 3], [0, 1], "`predictions` holds 3: with `num_classes` 3 it is 0 to 2"),
        ([0, 1], [0, -1], "`references` holds -1"),
        ([0, 1], [0], r"`predictions` has shape \(2,\), `references` \(1,\)"),
    ],
)
def test_bad_input_is_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predictions, references, num_classes=3)
