"""Lines over time for every pair of tasks: a panel for each task, in it a line to every other task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .charts import COLOURS, GREY, short_name
from .line_chart import LIGHT_GREY, axis_limits, panels_over_time, smooth, smoothing_window


def draw_pairs(
    figure: Figure, steps: np.ndarray, values: np.ndarray, names: Sequence[str], label: str, least_span: float
) -> None:
    """Lines of `values` [T, N, N] over `steps` [T], panel i showing `values[:, i]`; zero is a dashed line.

    Up to five tasks have a colour each. Of more, a panel names the partners with the highest and the lowest mean, and
    the others are grey.

    Args:
        label: of the vertical axis.
        least_span: the vertical axis covers at least this much.
    """
    window = smoothing_window(len(steps))
    flat = values.reshape(len(values), -1)
    smoothed = np.stack([smooth(column, window) for column in flat.T], axis=1).reshape(values.shape)
    panels = panels_over_time(figure, steps, len(names))
    panels[0, 0].set_ylim(axis_limits(smoothed, smoothed, [0.0], least_span))
    marker = {"marker": "o", "markersize": 3.5} if len(steps) <= 40 else {}
    few = len(names) <= len(COLOURS)
    for task, axes in enumerate(panels.flat[: len(names)]):
        axes.axhline(0, color=GREY, linestyle=(0, (5, 4)), linewidth=1.2, zorder=2.2)
        named = dict(enumerate(COLOURS[: len(names)])) if few else _extremes(values[:, task])
        for other in range(len(names)):
            if other != task:
                grey = other not in named
                axes.plot(
                    steps,
                    smoothed[:, task, other],
                    color=LIGHT_GREY if grey else named[other],
                    linewidth=0.9 if grey else 2.0,
                    zorder=2 if grey else 2.5,
                    label=f"_{names[other]}" if grey else names[other],
                    **({} if grey else marker),
                )
        axes.set_title(short_name(names[task], 80 // panels.shape[1]), size=11.5, weight="bold", loc="left")
        if not few:
            _name_extremes(axes, names, named)
    if few:
        figure.legend(
            [Line2D([], [], color=colour, linewidth=2.0) for colour in COLOURS[: len(names)]],
            [short_name(name, 80 // len(names)) for name in names],
            title="with",
            loc="outside lower center",
            ncols=len(names),
            frameon=False,
        )
        # Where the figure's own label would stand is the legend.
        for axes in panels[-1]:
            axes.set_xlabel("optimizer step")
    else:
        figure.supxlabel("optimizer step", size=12, color="#333333")
    figure.supylabel(label, size=12, color="#333333")


def _extremes(values: np.ndarray) -> dict[int, str]:
    """Colours of the two partners with the highest and the lowest mean of [T, N] values, highest first."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    means = np.divide(
        np.where(known, values, 0.0).sum(axis=0), count, where=count > 0, out=np.full(len(count), np.nan)
    )
    if not np.isfinite(means).any():
        return {}
    return {int(np.nanargmax(means)): COLOURS[0], int(np.nanargmin(means)): COLOURS[1]}


def _name_extremes(axes: Axes, names: Sequence[str], named: dict[int, str]) -> None:
    for (other, colour), height, side in zip(named.items(), (0.97, 0.03), ("top", "bottom"), strict=False):
        text = axes.text(0.04, height, short_name(names[other], 16), color=colour, size=9.5, weight="bold", va=side)
        text.set(transform=axes.transAxes, bbox={"color": "white", "alpha": 0.7, "pad": 1}, zorder=3)
