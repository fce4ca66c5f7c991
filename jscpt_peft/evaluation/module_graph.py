"""Which task takes how much from which feature module: the graph that MT-CRL-style heads learn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .heat_maps import draw_cells
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
    figure = new_figure(
        "Which task takes how much from which feature module",
        "Links are as strong as A says; blue ones are above the task's mean.",
        height=2.6 + 0.36 * max(graph.shape),
    )
    links, cells = figure.subplots(1, 2, width_ratios=(1, 1.25))
    names, modules = [short_name(name, 14) for name in tasks], range(1, 1 + graph.shape[1])
    _draw_links(links, graph, names, modules)
    texts = np.vectorize("{:.2f}".format)(graph) if graph.size <= MOST_WRITTEN else None
    draw_cells(cells, graph, names, modules, texts, cmap="Blues", vmin=0, vmax=1)
    cells.set_xlabel("module")
    return figure


def _draw_links(axes: Axes, graph: np.ndarray, names: Sequence[str], modules: Sequence[int]) -> None:
    left, right = (np.linspace(1, 0, count + 2)[1:-1] for count in graph.shape)
    for strength, task, module in sorted((value, *place) for place, value in np.ndenumerate(graph)):
        colour = COLOURS[0] if strength > graph[task].mean() else LIGHT_GREY
        axes.plot([0, 1], [left[task], right[module]], color=colour, linewidth=6 * strength**2, alpha=0.75)
    for x, places, labels, beside, side in ((0, left, names, -0.05, "right"), (1, right, modules, 0.05, "left")):
        axes.scatter([x] * len(places), places, s=60, color=DARK, zorder=3)
        for place, label in zip(places, labels, strict=True):
            axes.text(x + beside, place, label, ha=side, va="center", color=DARK)
    axes.set(xlim=(-0.1, 1.1), ylim=(0, 1))
    axes.set_axis_off()
