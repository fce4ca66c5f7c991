"""Which task takes how much from which feature module: the graph that MT-CRL-style heads learn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import COLOURS, DARK, LIGHT_GREY, new_figure, short_name, write_figures

FILE = "modules.png"
MOST_WRITTEN = 120  # cells in which there is room for numbers


def draw_module_graph(graph: np.ndarray, tasks: Sequence[str], output_dir: str | os.PathLike) -> list[Path]:
    """Draws `modules.png` into `output_dir`, made if need be: links from tasks to modules, and their strengths.

    Args:
        graph: `[N, K]` of numbers from 0 to 1, as `FeatureModules.graph()` gives it.
        tasks: [N] names.
        output_dir: for the figure.

    Returns:
        Its path.

    Raises:
        ValueError: the graph is not one of these tasks.
    """
    graph = np.asarray(graph, dtype=np.float64)
    if graph.ndim != 2 or len(graph) != len(tasks) or not ((graph >= 0) & (graph <= 1)).all():
        raise ValueError(
            f"`graph` of the shape {graph.shape} must be [{len(tasks)}, modules], a row for each of `tasks`, of "
            "numbers from 0 to 1."
        )
    return write_figures(output_dir, {FILE: partial(module_graph_figure, graph, tasks)})


def module_graph_figure(graph: np.ndarray, tasks: Sequence[str]) -> Figure:
    """The graph `[N, K]` as links, on the left, and as numbers."""
    rows = max(graph.shape)
    figure = new_figure(
        "Which task takes how much from which feature module",
        "Links are as strong as A says; blue ones are above the task's mean.",
        height=2.6 + 0.36 * rows,
    )
    links, cells = figure.subplots(1, 2, width_ratios=(1, 1.25))
    names = [short_name(name, 14) for name in tasks]
    _draw_links(links, graph, names)
    _draw_cells(cells, graph, names)
    return figure


def _draw_links(axes: Axes, graph: np.ndarray, names: Sequence[str]) -> None:
    left, right = (np.linspace(1, 0, count + 2)[1:-1] for count in graph.shape)
    for strength, task, module in sorted((value, *place) for place, value in np.ndenumerate(graph)):
        colour = COLOURS[0] if strength > graph[task].mean() else LIGHT_GREY
        axes.plot([0, 1], [left[task], right[module]], color=colour, linewidth=6 * strength**2, alpha=0.75)
    for x, places, labels, side in ((0, left, names, "right"), (1, right, range(1, 1 + len(right)), "left")):
        axes.scatter([x] * len(places), places, s=60, color=DARK, zorder=3)
        for place, label in zip(places, labels, strict=True):
            axes.text(x - 0.05 if side == "right" else x + 0.05, place, label, ha=side, va="center", color=DARK)
    axes.set(xlim=(-0.1, 1.1), ylim=(0, 1))
    axes.set_axis_off()


def _draw_cells(axes: Axes, graph: np.ndarray, names: Sequence[str]) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.pcolormesh(graph, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    axes.set_xticks(np.arange(graph.shape[1]) + 0.5, range(1, 1 + graph.shape[1]))
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set(xlabel="module")
    if graph.size <= MOST_WRITTEN:
        for (row, column), value in np.ndenumerate(graph):
            colour = "white" if value > 0.6 else DARK
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", size=8.5, color=colour)
