"""Lines over time, each named where it ends or above its panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from .history import nanmean
from .style import COLOURS, DASHED, GREY, LIGHT_GREY, label_axes, new_figure, panels_in_rows, short_name

IN_ONE_PANEL = len(COLOURS)
MOST_PANELS = 20  # of more lines, all in one panel, two extremes at either end are named
FEW_STEPS = 40  # so few are not smoothed, and drawn with dots: a step may have no neighbour to be joined with
LABEL_GAP = 0.065  # between the names of lines, in heights of their panel


@dataclass(frozen=True)
class Reference:
    """A horizontal line that the values are to be compared with."""

    value: float
    label: str


def lines_figure(
    title: str, note: str, steps: np.ndarray, values: np.ndarray, names: Sequence[str], label: str, **options: Any
) -> Figure:
    """A figure of [`draw_lines`] alone; `note` begins its second heading line."""
    figure = new_figure(title, f"{note} {how_to_read(steps, len(names))}".strip(), height=height_of_lines(len(names)))
    draw_lines(figure, steps, values, names, label, **options)
    return figure


def how_to_read(steps: np.ndarray, count: int) -> str:
    """What the heading has to say about `count` lines over `steps` [T]."""
    window = smoothing_window(len(steps))
    note = "Values of single steps." if window == 1 else f"Lines: mean of {window} steps; faint: single steps."
    return note if count <= MOST_PANELS else f"{note} Named: extremes."


def height_of_lines(count: int, most_columns: int = 5) -> float:
    """Of a figure with `count` lines, in inches."""
    return max(5.6, 2.2 + 1.5 * -(-count // most_columns)) if count <= MOST_PANELS else 5.6


def smoothing_window(count: int) -> int:
    """An odd number of steps, about a twentieth of `count`, at most 501."""
    return min(count // 20, 500) | 1


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred means over `window` (odd) of [T, K] values, each column by itself, without nan.

    nan where less than half as many are known as usual, so that no line runs on into a gap on a few values.
    """
    table = pd.DataFrame(values)
    near = table.rolling(window, center=True, min_periods=1)
    usual = table.notna().mean() * window
    return near.mean().where(near.count() >= (usual / 2).astype(int)).to_numpy()


def spread(positions: Sequence[float], gap: float) -> np.ndarray:
    """Positions near the given ones, in the same order, that are at least `gap` apart."""
    order = np.argsort(positions, kind="stable")
    room = gap * np.arange(len(order))
    wanted = np.asarray(positions)[order] - room
    upwards, downwards = np.maximum.accumulate(wanted), np.minimum.accumulate(wanted[::-1])[::-1]
    moved = np.empty(len(order))
    moved[order] = (upwards + downwards) / 2 + room
    return moved


def draw_lines(
    figure: Figure | SubFigure,
    steps: np.ndarray,
    values: np.ndarray,
    names: Sequence[str],
    label: str,
    least_span: float = 0.1,
    reference: Reference | None = None,
    floor: float | None = None,
    marked_steps: Sequence[float] = (),
    most_columns: int = 5,
) -> None:
    """Lines of `values` [T, K] over `steps` [T]: up to five in one panel, up to 20 in a panel each, else in one.

    Args:
        label: of the vertical axis, with its unit.
        least_span: the vertical axis covers at least this much, so that noise around a constant looks small.
        reference: a dashed line to compare with.
        floor: where the vertical axis begins, whatever the values.
        marked_steps: at which the scheduler was updated; triangles below a single panel.
        most_columns: of panels.
    """
    count, smoothed = len(names), smooth(values, smoothing_window(len(steps)))
    panel_each = IN_ONE_PANEL < count <= MOST_PANELS
    columns = min(most_columns, -(-count // 2)) if panel_each else 1
    panels = panels_in_rows(figure, count if panel_each else 1, columns)
    low, high = axis_limits(values, smoothed, [] if reference is None else [reference.value], least_span)
    panels[0].set_ylim(low if floor is None else floor, high)
    panels[0].set_xlim(0, 1.01 * steps[-1])
    panels[0].xaxis.set_major_locator(MaxNLocator(3 if panel_each else 6, integer=True, steps=[1, 2, 5, 10]))
    for place, axes in enumerate(panels):
        shown = [place] if panel_each else list(range(count)) if count <= IN_ONE_PANEL else _extremes(smoothed)
        axes.plot(steps, np.delete(smoothed, shown, axis=1), color=LIGHT_GREY, linewidth=0.9, zorder=2)
        for colour, line in zip(COLOURS, shown, strict=False):
            draw_line(axes, steps, values[:, line], smoothed[:, line], colour, names[line])
        if reference is not None:
            axes.axhline(reference.value, **DASHED)
        if panel_each:
            axes.set_title(short_name(names[place], 80 // columns))
        else:
            _label_lines(axes, steps, smoothed[:, shown], [names[line] for line in shown], reference)
            if len(marked_steps) > 0:
                heights, at_bottom = np.zeros(len(marked_steps)), axes.get_xaxis_transform()
                axes.plot(marked_steps, heights, "^", color=GREY, markersize=6, transform=at_bottom, clip_on=False)
    if panel_each:
        label_axes(figure, "optimizer step", label)
    else:
        marks = " (triangles: scheduler updated)" if len(marked_steps) > 0 else ""
        panels[0].set(xlabel=f"optimizer step{marks}", ylabel=label)


def axis_limits(
    values: np.ndarray, smoothed: np.ndarray, required: Sequence[float], least_span: float
) -> tuple[float, float]:
    """Where the smoothed lines and nine tenths of the raw values fit: outliers must not flatten the lines."""
    known = values[np.isfinite(values)]
    reached = [*(np.percentile(known, [5, 95]) if len(known) else [0.0]), *smoothed[np.isfinite(smoothed)], *required]
    low, high = min(reached), max(reached)
    missing = max(0.0, least_span - (high - low))
    pad = 0.05 * max(high - low, least_span)
    return low - missing / 2 - pad, high + missing / 2 + pad


def _extremes(smoothed: np.ndarray) -> list[int]:
    """The two highest and the two lowest lines of [T, K] in the last tenth of the steps, highest first."""
    last = nanmean(smoothed[-max(1, len(smoothed) // 10) :], axis=0)
    order = [int(line) for line in np.argsort(-last) if np.isfinite(last[line])]
    return order if len(order) <= 4 else [*order[:2], *order[-2:]]


def draw_line(axes: Axes, steps: np.ndarray, raw: np.ndarray, smoothed: np.ndarray, colour: str, name: str) -> None:
    """One line over its raw values."""
    few = len(steps) <= FEW_STEPS
    if not few:
        # The more steps, the denser the haze of their lines: paler, so that it stays a background.
        opacity = 0.3 if len(steps) <= 300 else 0.14
        axes.plot(steps, raw, color=colour, linewidth=0.6, alpha=opacity, zorder=1.6, label=f"_raw {name}")
    dots = {"marker": "o", "markersize": 4} if few else {}
    axes.plot(steps, smoothed, color=colour, linewidth=2.2, zorder=2.5, label=name, **dots)


def _label_lines(
    axes: Axes, steps: np.ndarray, smoothed: np.ndarray, names: Sequence[str], reference: Reference | None
) -> None:
    """Each line's name at its right end, moved apart where lines end close to each other."""
    bottom, top = axes.get_ylim()
    labels = []  # text, colour, weight, the point named
    for name, colour, line in zip(names, COLOURS, smoothed.T, strict=False):
        known = np.flatnonzero(np.isfinite(line))
        point = (steps[known[-1]], line[known[-1]]) if len(known) else (steps[-1], bottom)
        labels.append((short_name(name, 25) + ("" if len(known) else " (no data)"), colour, "bold", point))
    if reference is not None:
        labels.append((reference.label, GREY, "normal", (steps[-1], reference.value)))
    labels.reverse()  # where lines end at the same height, the first one's name comes on top
    heights = spread([(point[1] - bottom) / (top - bottom) for *_, point in labels], LABEL_GAP)
    for (text, colour, weight, point), height in zip(labels, heights, strict=True):
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 0}
        where = {"xytext": (1.03, height), "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        axes.annotate(text, point, color=colour, weight=weight, arrowprops=arrow, **where)
