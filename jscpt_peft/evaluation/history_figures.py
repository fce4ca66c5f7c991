"""The figures of a run, drawn from its scheduler history alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jscpt_peft.choices import check_choice

from .heat_maps import draw_heat_maps, mean_between_tasks, steps_title, windows_of
from .history import history_arrays, read_history
from .lines import Reference, draw_lines, height_of_lines, how_to_read, lines_figure
from .prompt_scheduling_figure import LITERAL_NEUTRAL_EFFECT, equal_weights, present_weights, prompt_scheduling_figure
from .style import cut, new_figure, write_figures

MOST_MARKS = 30  # of updates of Ω
HEAT_MAPS = 4.4  # their height in inches
MOST_TASKS_FOR_THREE = 10  # matrices side by side; of more tasks two, which are larger

BETWEEN_MEANS = {"affinity_mean", "gradient_cosine_mean"}
PROMPT_SCHEDULING = {"loss", "epoch", "causal_effect", "prompt_factor", "weight"}


def draw_figures(
    history_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    neutral_effect: float = LITERAL_NEUTRAL_EFFECT,
    task: str | None = None,
) -> list[Path]:
    """Draws figures of what the history holds into `output_dir`.

    They are `losses.png`, `weights.png`, `affinity.png`, `gradient_cosines.png`, `causal_effects.png` and
    `prompt_scheduling.png`. A figure for which a run logs nothing (uniform weights have no affinity, a single task has
    no other one) is left out, and deleted where an earlier run left it. The paper's Fig. 1(c) is
    `gradient_cosines.png`, Fig. 4 `prompt_scheduling.png`, Fig. 5 `losses.png` and `affinity.png`.

    Args:
        history_path: a `scheduler_history.jsonl` (see [`SchedulerHistory`]).
        output_dir: made if need be.
        neutral_effect: the causal effect of a selection that changes nothing: 0.731 for Eq. 4 as printed, 0.5 for
            `causal_effect="sigmoid"`.
        task: the task of `prompt_scheduling.png`; the first if None.

    Returns:
        The paths of the figures drawn, in that order.

    Raises:
        FileNotFoundError: no such history.
        ValueError: the history holds no step yet, or `task` is none of its tasks.
    """
    rows = read_history(history_path)
    if not rows:
        raise ValueError(f"`history_path` is {os.fspath(history_path)!r}, which holds no step yet: train first.")
    tasks, arrays = rows[0]["tasks"], history_arrays(rows)
    if task is not None:
        check_choice("task", task, tasks)
    chosen = 0 if task is None else tasks.index(task)
    held = arrays.keys() - (BETWEEN_MEANS if len(tasks) == 1 else set())
    figures = {  # what each needs of the history, and how it is drawn
        "losses.png": ({"loss"}, losses_figure, ()),
        "weights.png": ({"loss", "weight"}, weights_figure, ()),
        "affinity.png": ({"affinity_mean"}, affinity_figure, ()),
        "gradient_cosines.png": ({"gradient_cosine_mean"}, gradient_cosines_figure, ()),
        "causal_effects.png": ({"causal_effect"}, causal_effects_figure, (neutral_effect,)),
        "prompt_scheduling.png": (PROMPT_SCHEDULING, prompt_scheduling_figure, (chosen, neutral_effect)),
    }
    makers = {
        name: partial(make, arrays, tasks, *options)
        for name, (needed, make, options) in figures.items()
        if needed <= held
    }
    for name in figures.keys() - makers.keys():
        Path(output_dir, name).unlink(missing_ok=True)
    return write_figures(output_dir, makers)


def losses_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Task losses over time. `arrays` as [`history_arrays`] returns them; so for the other figures."""
    title, label = "Training loss of each task", "cross-entropy (nats)"
    return lines_figure(title, "", arrays["step"], arrays["loss"], tasks, label, floor=0.0)


def weights_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Weights φ over time, with the steps at which Ω moved."""
    updates = arrays["step"][arrays["scheduler_step"]]
    times = {0: "not updated", 1: "updated once"}.get(len(updates), f"updated {len(updates)} times")
    return lines_figure(
        "Weight of each task in the update",
        f"Scheduler {times}.",
        arrays["step"],
        present_weights(arrays),
        tasks,
        "weight φ",
        reference=equal_weights(arrays),
        marked_steps=updates if len(updates) <= MOST_MARKS else (),
    )


def causal_effects_figure(
    arrays: dict[str, np.ndarray], tasks: Sequence[str], neutral_effect: float = LITERAL_NEUTRAL_EFFECT
) -> Figure:
    """Causal effects Δ over time (Eq. 4), against the value of a selection that changes nothing."""
    return lines_figure(
        "Causal effect of feature selection on each task",
        f"Above {neutral_effect:.3g} selection lowers the loss.",
        arrays["step"],
        arrays["causal_effect"],
        tasks,
        "causal effect Δ (0 to 1)",
        least_span=0.02,
        reference=Reference(neutral_effect, f"no effect ({neutral_effect:.3g})"),
    )


def affinity_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Mean affinity of the other tasks for each task over time, above the whole matrix at three times (Fig. 5)."""
    return _relations_figure(
        arrays,
        tasks,
        "affinity",
        "How much the other tasks' gradients help each task",
        "Above 0 they help, below 0 they hurt.",
        axis_labels=("source task", "target task"),
        values=arrays["affinity_mean"],
        names=tasks,
        label="mean affinity of the others",
        reference=Reference(0.0, "no effect"),
    )


def gradient_cosines_figure(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Cosines of the tasks' gradients for the shared prompts, each pair over time (Fig. 1(c)), above the matrices.

    Of more than 32 tasks, whose pairs are not in the history, each task's mean with the others.
    """
    names, values, label = tasks, arrays["gradient_cosine_mean"], "mean cosine with the others"
    if "gradient_cosine" in arrays:
        one, other = np.triu_indices(len(tasks), k=1)
        names = [f"{cut(tasks[i], 11)} – {cut(tasks[j], 11)}" for i, j in zip(one, other, strict=True)]
        values, label = arrays["gradient_cosine"][:, one, other], "gradient cosine"
    return _relations_figure(
        arrays,
        tasks,
        "gradient_cosine",
        "Do the tasks pull the shared prompts the same way?",
        "Above 0 two tasks agree, below 0 they conflict.",
        values=values,
        names=names,
        label=label,
        reference=Reference(0.0, "orthogonal"),
        most_columns=5 if names is tasks else 3,  # names of pairs are long
    )


def _relations_figure(
    arrays: dict[str, np.ndarray],
    tasks: Sequence[str],
    column: str,
    title: str,
    note: str,
    axis_labels: tuple[str, str] = ("", ""),
    most_columns: int = 5,
    **lines: Any,
) -> Figure:
    """Lines over time, as [`draw_lines`] takes them, above heat maps of `column`, where that is in the history."""
    steps, count = arrays["step"], len(lines["names"])
    lines |= {"steps": steps, "most_columns": most_columns}
    if column not in arrays:
        return lines_figure(title, note, **lines)
    height = height_of_lines(count, most_columns) - 1
    figure = new_figure(title, f"{note} {how_to_read(steps, count)}", height=height + HEAT_MAPS)
    upper, lower = figure.subfigures(2, 1, height_ratios=(height - 0.95, HEAT_MAPS))
    draw_lines(upper, **lines)
    windows = windows_of(len(steps), 3 if len(tasks) <= MOST_TASKS_FOR_THREE else 2)
    matrices = [mean_between_tasks(arrays[column][window]) for window in windows]
    titles = [steps_title(steps[window]) for window in windows]
    draw_heat_maps(lower, matrices, titles, tasks, column.replace("_", " "), axis_labels)
    return figure
