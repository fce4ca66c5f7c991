"""Accuracy of several classification tasks: per task, their mean, the worst task, the worst group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def multi_task_accuracy(
    predictions: Sequence[int],
    references: Sequence[int],
    task_ids: Sequence[int],
    task_names: Sequence[str],
    groups: Sequence[int] | None = None,
) -> dict[str, float]:
    """Accuracies in [0, 1] of S samples that belong to N tasks.

    Args:
        predictions: [S] predicted class index, counted within the sample's own task.
        references: [S] true class index, counted likewise.
        task_ids: [S] position of the sample's task in `task_names`.
        task_names: [N] distinct names.
        groups: [S] group of the sample within its task (for example its background), where groups are known.

    Returns:
        `accuracy/<task>` for every task (nan for a task without samples); `mean_accuracy`, the mean over the tasks
        that have samples (each task counts the same, however many samples it has); `worst_task_accuracy`; and, with
        `groups`, `worst_group_accuracy`, the minimum over the (task, group) pairs that have samples.

    Raises:
        ValueError: no samples, columns of different lengths or of another type, a task id out of range, bad names.

    Example:
        >>> multi_task_accuracy([0, 1, 1], [0, 1, 0], task_ids=[0, 0, 1], task_names=["art", "sketch"])
        {'accuracy/art': 1.0, 'accuracy/sketch': 0.0, 'mean_accuracy': 0.5, 'worst_task_accuracy': 0.0}
    """
    names = distinct_names(task_names)
    predictions = integers("predictions", predictions)
    references = integers("references", references, length=len(predictions))
    task_ids = integers("task_ids", task_ids, length=len(predictions))
    if len(predictions) == 0:
        raise ValueError("`predictions` is empty: there is nothing to score; pass at least one sample.")
    out_of_range = task_ids[(task_ids < 0) | (task_ids >= len(names))]
    if len(out_of_range) > 0:
        raise ValueError(
            f"`task_ids` holds {out_of_range[0]}, but `task_names` has {len(names)} tasks (0 to {len(names) - 1}): "
            f"{', '.join(names)}. Score the task set that the model was made for."
        )

    correct = predictions == references
    by_task = mean_by(task_ids, correct, count=len(names))
    metrics = {f"accuracy/{name}": float(accuracy) for name, accuracy in zip(names, by_task, strict=True)}
    metrics["mean_accuracy"] = float(np.nanmean(by_task))
    metrics["worst_task_accuracy"] = float(np.nanmin(by_task))
    if groups is not None:
        pairs = np.stack([task_ids, integers("groups", groups, length=len(predictions))], axis=1)
        distinct, pair_ids = np.unique(pairs, axis=0, return_inverse=True)
        metrics["worst_group_accuracy"] = float(mean_by(pair_ids.reshape(-1), correct, len(distinct)).min())
    return metrics


def distinct_names(task_names: Sequence[str]) -> tuple[str, ...]:
    """The names, if there are any and none of them comes twice; else a ValueError."""
    names = tuple(task_names)
    if isinstance(task_names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"`task_names` is {task_names!r}: pass a list of at least one name, each only once.")
    return names


def integers(name: str, values: Sequence[int], length: int | None = None) -> np.ndarray:
    """The column `name` as integers [S], if it holds integers and `length` of them; else a ValueError."""
    column = np.asarray(values)
    if column.ndim != 1:
        raise ValueError(
            f"`{name}` has shape {column.shape}: pass one integer per sample, [S] (an argmax, not logits)."
        )
    if length is not None and len(column) != length:
        raise ValueError(f"`{name}` has {len(column)} samples, `predictions` {length}: pass as many of each.")
    if len(column) > 0 and column.dtype.kind not in "iu":
        raise ValueError(f"`{name}` holds {column.dtype} values such as {column[0]!r}: pass integers.")
    return column.astype(np.int64)


def mean_by(ids: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Mean of the samples' values for each id 0 to count - 1: [count], nan without samples."""
    samples = np.bincount(ids, minlength=count)
    sums = np.bincount(ids, weights=values, minlength=count)
    return np.divide(sums, samples, out=np.full(count, np.nan), where=samples > 0)
