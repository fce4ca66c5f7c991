"""Pictures of how the tasks relate: affinities (Fig. 5 of the paper) and cosines of their gradients (Fig. 1(c))."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

from .charts import COLOURS, cut, draw_matrices, new_figure, short_name
from .line_chart import Reference, draw_by_task, smoothing_note, smoothing_window
from .pair_chart import draw_pairs


def affinity_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Mean incoming affinity of each task over time, above the whole matrix at three times.

    `arrays` as [`history_arrays`] returns them.
    """
    title = "How much the other tasks' gradients help each task"
    if len(tasks) < 2:
        return _only_task(title, "Affinity between tasks", tasks[0], "affinity")
    affinity = _without_diagonal(arrays["affinity"])
    figure = new_figure(
        title, f"Affinity: above 0 they help, below 0 they hurt. {smoothing_note(arrays['step'])}", height=9
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1))
    draw_by_task(
        upper,
        arrays["step"],
        _mean(affinity, axis=1),
        tasks,
        "mean affinity of the others",
        least_span=0.05,
        reference=Reference(0.0, "no effect"),
    )
    windows = _three_windows(len(affinity))
    draw_matrices(
        lower,
        [_mean(affinity[window], axis=0) for window in windows],
        [_steps_title(arrays["step"][window]) for window in windows],
        tasks,
        "affinity of source on target",
    )
    return figure


def gradient_cosines_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Cosines of the tasks' gradients for the shared prompts over time, a curve for every pair (Fig. 1(c)).

    Few pairs share a panel; else each task has a panel with its curve to every other task.
    """
    title = "Do the tasks pull the shared prompts the same way?"
    meaning = "Above 0 two tasks agree, below 0 they conflict."
    if len(tasks) < 2:
        return _only_task(title, "Gradient cosine between tasks", tasks[0], "gradient cosine")
    steps, cosines = arrays["step"], arrays["gradient_cosine"]
    label, zero = "gradient cosine", Reference(0.0, "orthogonal")
    pairs = list(combinations(range(len(tasks)), 2))
    if len(pairs) <= len(COLOURS):
        figure = new_figure(title, f"{meaning} {smoothing_note(steps)}")
        values = np.stack([cosines[:, one, other] for one, other in pairs], axis=1)
        names = [f"{cut(tasks[one], 10)} – {cut(tasks[other], 9)}" for one, other in pairs]
        draw_by_task(figure, steps, values, names, label, least_span=0.1, reference=zero)
        return figure
    window = smoothing_window(len(steps))
    how = "Values of single steps." if window == 1 else f"Lines: mean of {window} steps."
    named = " Named: highest and lowest mean." if len(tasks) > len(COLOURS) else ""
    figure = new_figure(title, f"{meaning} {how}{named}", height=7.5)
    draw_pairs(figure, steps, _without_diagonal(cosines), tasks, label, least_span=0.1)
    return figure


def _only_task(title: str, subtitle: str, task: str, what: str) -> Figure:
    figure = new_figure(title, subtitle)
    figure.text(0.5, 0.45, f"{short_name(task)} is the only task: there is no {what}.", ha="center", size=14)
    return figure


def _without_diagonal(values: np.ndarray) -> np.ndarray:
    """[T, N, N] with nan where a task would meet itself."""
    return np.where(np.eye(values.shape[1], dtype=bool), np.nan, values)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not nan; nan where nothing is left."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _three_windows(count: int) -> list[slice]:
    """The beginning, the middle and the end of `count` steps, a tenth each; fewer where they would be the same."""
    width = max(1, count // 10)
    return [slice(start, start + width) for start in sorted({0, (count - width) // 2, count - width})]


def _steps_title(steps: np.ndarray) -> str:
    return f"step {steps[0]:.0f}" if len(steps) == 1 else f"steps {steps[0]:.0f} to {steps[-1]:.0f}"
