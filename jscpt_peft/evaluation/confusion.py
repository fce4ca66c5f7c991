"""Which class is taken for which: the confusion matrix, and the F1 score that counts every class the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def confusion_matrix(predictions: Sequence[int], references: Sequence[int], num_classes: int) -> np.ndarray:
    """Counts `[C, C]`: row the true class, column the predicted one.

    Args:
        predictions: `[S]` predicted class indices.
        references: `[S]` true ones.
        num_classes: C.

    Raises:
        ValueError: the two differ in length, or hold an index outside 0 to C - 1.
    """
    predictions, references = np.asarray(predictions, dtype=np.int64), np.asarray(references, dtype=np.int64)
    if predictions.shape != references.shape:
        raise ValueError(f"`predictions` has shape {predictions.shape}, `references` {references.shape}: pass pairs.")
    for name, column in (("predictions", predictions), ("references", references)):
        wrong = column[(column < 0) | (column >= num_classes)]
        if len(wrong) > 0:
            raise ValueError(
                f"`{name}` holds {wrong[0]}: with `num_classes` {num_classes} it is 0 to {num_classes - 1}."
            )
    cells = np.bincount(references * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def macro_f1(matrix: np.ndarray) -> float:
    """Mean of the classes' F1 = 2 TP / (2 TP + FP + FN), in [0, 1]; nan without samples.

    Classes that occur neither among the true nor among the predicted ones are left out, as scikit-learn does.

    Args:
        matrix: `[C, C]` as [`confusion_matrix`] returns it.
    """
    denominator = matrix.sum(axis=0) + matrix.sum(axis=1)  # TP + FP and TP + FN
    occurs = denominator > 0
    return float(np.mean(2 * np.diag(matrix)[occurs] / denominator[occurs])) if occurs.any() else float("nan")


def confused_pairs(matrix: np.ndarray, count: int | None = None) -> list[tuple[int, int, int]]:
    """The most frequent mistakes as (true class, predicted class, number), most frequent first, at most `count`."""
    mistakes = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, matrix.shape)
    return [(int(r), int(c), int(mistakes[r, c])) for r, c in zip(rows, columns, strict=True) if mistakes[r, c] > 0]


def most_confused_classes(matrix: np.ndarray, count: int) -> list[int]:
    """`count` classes to look at, in the order of their indices: those of the most frequent mistakes, pair by pair.

    Where there are fewer classes with mistakes, the first of the others fill up.
    """
    ranked = dict.fromkeys(each for true, predicted, _ in confused_pairs(matrix) for each in (true, predicted))
    return sorted(list(ranked | dict.fromkeys(range(len(matrix))))[:count])
