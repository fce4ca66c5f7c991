"""The pictures of a run, drawn from its scheduler history alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from jscpt_peft.choices import check_choice

from .charts import STYLE, new_figure
from .history_table import history_arrays, read_history
from .line_chart import draw_by_task, smoothing_note
from .prompt_pictures import LITERAL_NEUTRAL_EFFECT, causal_effects_figure, equal_weights, prompt_scheduling_figure
from .relation_pictures import affinity_figure, gradient_cosines_figure

DOTS_PER_INCH = 180
MOST_MARKS = 30


def draw_pictures(
    history_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    neutral_effect: float = LITERAL_NEUTRAL_EFFECT,
    task: str | None = None,
) -> list[Path]:
    """Draw six pictures into `output_dir`.

    They are `losses.png`, `weights.png`, `affinity.png`, `gradient_cosines.png`, `causal_effects.png` and
    `prompt_scheduling.png`. In them are the paper's Fig. 1(c) (`gradient_cosines.png`), Fig. 4
    (`prompt_scheduling.png`) and Fig. 5 (`losses.png` and `affinity.png`).

    Args:
        history_path: a `scheduler_history.jsonl` (see [`SchedulerHistory`]).
        output_dir: made if need be.
        neutral_effect: the causal effect of a selection that changes nothing: 0.731 for Eq. 4 as printed, 0.5 for
            `causal_effect="sigmoid"`.
        task: the task of `prompt_scheduling.png`; the first if None.

    Returns:
        The six paths, in that order.

    Raises:
        FileNotFoundError: no such history.
        ValueError: the history is damaged or holds no step yet, or `task` is none of its tasks.
    """
    rows = read_history(history_path)
    if not rows:
        raise ValueError(f"`history_path` is {os.fspath(history_path)!r}, which holds no step yet: train first.")
    tasks, arrays = rows[0]["tasks"], history_arrays(rows)
    if task is not None:
        check_choice("task", task, tasks)
    chosen = 0 if task is None else tasks.index(task)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    # A style of our own, whatever the user's matplotlibrc says; theirs is back afterwards.
    with style.context(["default", STYLE]):
        for name, figure in (
            ("losses.png", losses_figure(arrays, tasks)),
            ("weights.png", weights_figure(arrays, tasks)),
            ("affinity.png", affinity_figure(arrays, tasks)),
            ("gradient_cosines.png", gradient_cosines_figure(arrays, tasks)),
            ("causal_effects.png", causal_effects_figure(arrays, tasks, neutral_effect)),
            ("prompt_scheduling.png", prompt_scheduling_figure(arrays, tasks, chosen, neutral_effect)),
        ):
            figure.savefig(output_dir / name, dpi=DOTS_PER_INCH, facecolor="white")
            paths.append(output_dir / name)
    return paths


def losses_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Task losses over time. `arrays` as [`history_arrays`] returns them; so for the other figures."""
    figure = new_figure("Training loss of each task", smoothing_note(arrays["step"]))
    draw_by_task(figure, arrays["step"], arrays["loss"], tasks, "cross-entropy (nats)", least_span=0.1, floor=0.0)
    return figure


def weights_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Weights φ over time, with the steps at which Ω moved."""
    weights, updates = arrays["weight"], arrays["step"][arrays["scheduler_step"]]
    marked = updates if len(updates) <= MOST_MARKS else ()
    figure = new_figure(
        "Weight of each task in the update", f"{smoothing_note(arrays['step'])} {_update_note(updates)}"
    )
    draw_by_task(
        figure,
        arrays["step"],
        weights,
        tasks,
        "weight φ",
        least_span=0.1,
        reference=equal_weights(arrays),
        marked_steps=marked,
    )
    return figure


def _update_note(updates: np.ndarray) -> str:
    if len(updates) == 0:
        return "The scheduler was not updated."
    times, marks = ("once", "triangle") if len(updates) == 1 else (f"{len(updates)} times", "triangles")
    return f"Scheduler updated {times} ({marks})." if len(updates) <= MOST_MARKS else f"Scheduler updated {times}."
