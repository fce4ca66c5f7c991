"""Figure: how tasks were grouped by their gradients."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jscpt_peft.scheduling.grouping import Cluster, Merge

from .style import COLOURS, DARK, GREY, new_figure, short_name, write_figures


def draw_dendrogram(
    path: str | os.PathLike, merges: Sequence[Merge], groups: Mapping[str, str | Sequence[str]]
) -> Path:
    """Draws the merges of tasks, with a dot where several tasks share a prompt; returns the path.

    Args:
        path: of the PNG file.
        merges: of `agglomerate`.
        groups: `JSCPTConfig.groups`, tasks in the order of the merges' numbers.
    """
    path = Path(path)
    return write_figures(path.parent, {path.name: lambda: _figure(merges, groups)})[0]


def _figure(merges: Sequence[Merge], groups: Mapping[str, str | Sequence[str]]) -> Figure:
    names = list(groups)
    shared: dict[str, list[int]] = {}
    for task, group in enumerate(groups.values()):
        for node in [group] if isinstance(group, str) else group:
            shared.setdefault(node, []).append(task)
    with_prompt = {tuple(tasks) for tasks in shared.values() if len(tasks) > 1}

    subtitle = "A dot: the tasks to its left share a prompt. Clusters whose gradients agree merge at a small distance."
    figure = new_figure("Tasks by the directions of their gradients", subtitle, height=2.2 + 0.45 * len(names))
    axes = figure.subplots()
    places: dict[Cluster, tuple[float, float]] = {}  # of a cluster: its distance, and its height in the figure
    order = _leaves(tuple(range(len(names))), {tuple(sorted(a + b)): (a, b) for a, b, _ in merges})
    for row, task in enumerate(order):
        places[(task,)] = (0.0, float(row))
    for first, second, distance in merges:
        (left, low), (other, high) = places[first], places[second]
        axes.plot([left, distance, distance, other], [low, low, high, high], color=DARK, linewidth=1.6, zorder=2)
        places[tuple(sorted(first + second))] = (distance, (low + high) / 2)
    for cluster in with_prompt & places.keys():
        axes.plot(*places[cluster], "o", color=COLOURS[0], markersize=9, zorder=3, clip_on=False)
    axes.set_yticks(range(len(order)), [short_name(names[task]) for task in order])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.06 * max([merge.distance for merge in merges], default=1.0) or 1.0)
    axes.set_xlabel("distance: 1 − mean cosine of the gradients", color=GREY)
    return figure


def _leaves(cluster: Cluster, parts: Mapping[Cluster, tuple[Cluster, Cluster]]) -> list[int]:
    """Tasks in an order in which no lines cross."""
    if cluster not in parts:
        return list(cluster)
    first, second = parts[cluster]
    return _leaves(first, parts) + _leaves(second, parts)
