"""Four pictures of a run, drawn from its scheduler history: losses, weights, affinity, causal effects."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from .charts import STYLE, draw_matrices, new_figure
from .history import history_arrays, read_history
from .line_chart import Reference, draw_by_task, smoothing_window

# Eq. 4 gives σ(exp(0)) = 0.731 where selecting features changes nothing.
LITERAL_NEUTRAL_EFFECT = 1 / (1 + math.exp(-1))
DOTS_PER_INCH = 180
MOST_MARKS = 30


def draw_pictures(
    history_path: str | os.PathLike, output_dir: str | os.PathLike, neutral_effect: float = LITERAL_NEUTRAL_EFFECT
) -> list[Path]:
    """Draw `losses.png`, `weights.png`, `affinity.png` and `causal_effects.png` into `output_dir`.

    Args:
        history_path: a `scheduler_history.jsonl` (see [`SchedulerHistory`]).
        output_dir: made if need be.
        neutral_effect: the causal effect of a selection that changes nothing: 0.731 for Eq. 4 as printed, 0.5 for
            `causal_effect="sigmoid"`.

    Returns:
        The four paths, in that order.

    Raises:
        FileNotFoundError: no such history.
        ValueError: the history is damaged or holds no step yet.
    """
    rows = read_history(history_path)
    if not rows:
        raise ValueError(f"`history_path` is {os.fspath(history_path)!r}, which holds no step yet: train first.")
    tasks, arrays = rows[0]["tasks"], history_arrays(rows)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    # A style of our own, whatever the user's matplotlibrc says; theirs is back afterwards.
    with style.context(["default", STYLE]):
        for name, figure in (
            ("losses.png", losses_figure(arrays, tasks)),
            ("weights.png", weights_figure(arrays, tasks)),
            ("affinity.png", affinity_figure(arrays, tasks)),
            ("causal_effects.png", causal_effects_figure(arrays, tasks, neutral_effect)),
        ):
            figure.savefig(output_dir / name, dpi=DOTS_PER_INCH, facecolor="white")
            paths.append(output_dir / name)
    return paths


def losses_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Task losses over time. `arrays` as [`history_arrays`] returns them; so for the other three."""
    figure = new_figure("Training loss of each task", _reading(arrays["step"]))
    draw_by_task(figure, arrays["step"], arrays["loss"], tasks, "cross-entropy (nats)", least_span=0.1, floor=0.0)
    return figure


def weights_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Weights φ over time, with the steps at which Ω moved."""
    weights, updates = arrays["weight"], arrays["step"][arrays["scheduler_step"]]
    present = np.isfinite(weights)
    means = np.where(present, weights, 0).sum(axis=1)[present.any(axis=1)] / present.sum(axis=1)[present.any(axis=1)]
    # Only normalised weights have an "equal" that is the same at every step.
    equal = Reference(1.0, "equal weights") if np.allclose(means, 1.0, atol=1e-3) else None
    marked = updates if len(updates) <= MOST_MARKS else ()
    figure = new_figure("Weight of each task in the update", f"{_reading(arrays['step'])} {_update_note(updates)}")
    draw_by_task(
        figure, arrays["step"], weights, tasks, "weight φ", least_span=0.1, reference=equal, marked_steps=marked
    )
    return figure


def affinity_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Mean incoming affinity of each task over time, above the whole matrix at three times."""
    title = "How much the other tasks' gradients help each task"
    if len(tasks) < 2:
        figure = new_figure(title, "Affinity between tasks")
        figure.text(0.5, 0.45, f"{tasks[0]} is the only task: there is no affinity.", ha="center", size=14)
        return figure
    affinity = _without_diagonal(arrays["affinity"])
    figure = new_figure(title, f"Affinity: above 0 they help, below 0 they hurt. {_reading(arrays['step'])}", height=9)
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


def causal_effects_figure(
    arrays: dict[str, np.ndarray], tasks: Sequence[str], neutral_effect: float = LITERAL_NEUTRAL_EFFECT
) -> Figure:
    """Causal effects Δ over time (Eq. 4), against the value of a selection that changes nothing."""
    reference = Reference(neutral_effect, f"no effect ({neutral_effect:.3g})")
    figure = new_figure(
        "Causal effect of feature selection on each task",
        f"Above {neutral_effect:.3g} the selected features have the lower loss. {_reading(arrays['step'])}",
    )
    draw_by_task(
        figure,
        arrays["step"],
        arrays["causal_effect"],
        tasks,
        "causal effect Δ (0 to 1)",
        least_span=0.02,
        reference=reference,
    )
    return figure


def _reading(steps: np.ndarray) -> str:
    window = smoothing_window(len(steps))
    return "Values of single steps." if window == 1 else f"Lines: mean of {window} steps; faint: single steps."


def _update_note(updates: np.ndarray) -> str:
    if len(updates) == 0:
        return "The scheduler was not updated."
    times, marks = ("once", "triangle") if len(updates) == 1 else (f"{len(updates)} times", "triangles")
    return f"Scheduler updated {times} ({marks})." if len(updates) <= MOST_MARKS else f"Scheduler updated {times}."


def _without_diagonal(affinity: np.ndarray) -> np.ndarray:
    """[T, N, N] with nan where a task would meet itself."""
    return np.where(np.eye(affinity.shape[1], dtype=bool), np.nan, affinity)


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
