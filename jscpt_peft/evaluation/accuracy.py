"""Accuracy of several classification tasks: per task, their mean, the worst task, the worst group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        [`worst_task`] tells which task the worst one is.

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
    by_task = _accuracy_by(task_ids, correct, count=len(names))
    metrics = {f"accuracy/{name}": float(accuracy) for name, accuracy in zip(names, by_task, strict=True)}
    metrics["mean_accuracy"] = float(np.nanmean(by_task))
    metrics["worst_task_accuracy"] = float(np.nanmin(by_task))
    if groups is not None:
        groups = integers("groups", groups, length=len(predictions))
        pairs, pair_ids = np.unique(np.stack([task_ids, groups], axis=1), axis=0, return_inverse=True)
        by_pair = _accuracy_by(pair_ids.reshape(-1), correct, count=len(pairs))
        metrics["worst_group_accuracy"] = float(by_pair.min())
    return metrics


def worst_task(metrics: Mapping[str, float], task_names: Sequence[str], prefix: str = "") -> tuple[str, float]:
    """Name and accuracy of the task with the lowest `accuracy/<task>` (the first of several equal ones).

    Args:
        metrics: what [`multi_task_accuracy`] returned, keys optionally preceded by `prefix` (Trainer's `eval_`).
        task_names: the tasks to compare; those with nan are passed over.

    Raises:
        ValueError: no task has an accuracy.
    """
    accuracies = [(metrics[f"{prefix}accuracy/{name}"], name) for name in task_names]
    present = [(accuracy, name) for accuracy, name in accuracies if not np.isnan(accuracy)]
    if not present:
        raise ValueError(f"`metrics` holds no accuracy for any of the tasks {list(task_names)}.")
    accuracy, name = min(present, key=lambda pair: pair[0])
    return name, accuracy


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
        raise ValueError(f"`{name}` has shape {column.shape}: pass one integer a sample, [S] (an argmax, not logits).")
    if length is not None and len(column) != length:
        raise ValueError(f"`{name}` has {len(column)} samples, `predictions` {length}: pass as many of each.")
    if len(column) > 0 and column.dtype.kind not in "iu":
        raise ValueError(f"`{name}` holds {column.dtype} values such as {column[0]!r}: pass integers.")
    return column.astype(np.int64)


def _accuracy_by(ids: np.ndarray, correct: np.ndarray, count: int) -> np.ndarray:
    """Share of `correct` among the samples of each id 0 to count - 1: [count], nan without samples."""
    total = np.bincount(ids, minlength=count)
    right = np.bincount(ids, weights=correct, minlength=count)
    return np.divide(right, total, out=np.full(count, np.nan), where=total > 0)
