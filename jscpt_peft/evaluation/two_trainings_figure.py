"""Two trainings of the same tasks side by side: losses, and gradient cosines (counterpart of the paper's Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .heat_maps import draw_heat_maps, mean_between_tasks, steps_title, windows_of
from .lines import axis_limits, draw_line, how_to_read, smooth, smoothing_window
from .style import COLOURS, LIGHT_GREY, label_axes, new_figure, panels_in_rows, short_name

COLUMNS = 5
MOST_TASKS_FOR_TWO = 5  # times of each training; of more tasks the later one, in larger matrices


def two_trainings_figure(trainings: Mapping[str, Mapping[str, np.ndarray]], tasks: Sequence[str]) -> Figure:
    """A panel of losses for each task, above the gradients' cosines early and late.

    The cosine is the affinity of Eq. 5 without the ratio of the gradients' norms.

    Args:
        trainings: name -> its history as [`history_arrays`] returns it, with `loss` and `gradient_cosine`.
        tasks: [N] names.
    """
    length = min(len(arrays["step"]) for arrays in trainings.values())
    two = len(tasks) <= MOST_TASKS_FOR_TWO
    windows = windows_of(length, 2)[0 if two else -1 :]
    steps = next(iter(trainings.values()))["step"][:length]
    heights = 1.2 + 1.7 * -(-len(tasks) // COLUMNS), 3.2 if two else 4.8  # of losses and matrices, in inches
    note = f"{how_to_read(steps, 1)} Shaded: the steps of the matrices. Above 0 two tasks agree."
    figure = new_figure("Training losses, and which tasks conflict", note, height=0.95 + sum(heights))
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    losses = {name: arrays["loss"] for name, arrays in trainings.items()}
    smoothed = {name: smooth(each, smoothing_window(len(each))) for name, each in losses.items()}
    panels = panels_in_rows(upper, len(tasks), min(len(tasks), COLUMNS))
    together = [np.concatenate(list(each.values())) for each in (losses, smoothed)]
    panels[0].set_ylim(0, axis_limits(*together, [], least_span=0.1)[1])
    panels[0].xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
    for task, axes in enumerate(panels):
        axes.set_title(short_name(tasks[task], 80 // COLUMNS))
        for window in windows:
            axes.axvspan(steps[window][0] - 0.5, steps[window][-1] + 0.5, color=LIGHT_GREY, alpha=0.5, linewidth=0)
        for colour, (name, arrays) in zip(COLOURS, trainings.items(), strict=False):
            draw_line(axes, arrays["step"], losses[name][:, task], smoothed[name][:, task], colour, name)
    label_axes(upper, "optimizer step", "cross-entropy (nats)")
    lines, names = panels[0].get_legend_handles_labels()
    upper.legend(lines, [short_name(name, 50) for name in names], loc="outside upper left", ncols=2, frameon=False)
    draw_heat_maps(
        lower,
        [mean_between_tasks(arrays["gradient_cosine"][window]) for arrays in trainings.values() for window in windows],
        [f"{short_name(name)}\n{steps_title(steps[window])}" for name in trainings for window in windows],
        tasks,
        "gradient cosine",
    )
    return figure
