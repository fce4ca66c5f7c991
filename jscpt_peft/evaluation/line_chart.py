"""Lines over time, one for each task, named where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from .charts import COLOURS, GREY, short_name

LIGHT_GREY = "#C9C9C9"


@dataclass(frozen=True)
class Reference:
    """A horizontal line that the values are to be compared with."""

    value: float
    label: str


def smoothing_window(count: int) -> int:
    """An odd number of steps, about a twentieth of `count`, at most 501."""
    return min(count // 20, 500) | 1


def smoothing_note(steps: np.ndarray) -> str:
    """How to read the lines of [`draw_by_task`] over `steps` [T]."""
    window = smoothing_window(len(steps))
    return "Values of single steps." if window == 1 else f"Lines: mean of {window} steps; faint: single steps."


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean of [T] values over `window` (odd, at most T) of them; nan are left out, fewer at both ends."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to `positions` (least squares) that are at least `gap` apart, in the same order."""
    order = np.argsort(positions, kind="stable")
    blocks: list[list[float]] = []  # sums and sizes of what the pool-adjacent-violators algorithm has merged
    for rank, index in enumerate(order):
        blocks.append([positions[index] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, size = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += size
    moved = [total / size for total, size in blocks for _ in range(int(size))]
    result = [0.0] * len(positions)
    for rank, index in enumerate(order):
        result[index] = moved[rank] + rank * gap
    return result


def draw_by_task(
    figure: Figure | SubFigure,
    steps: np.ndarray,
    values: np.ndarray,
    names: Sequence[str],
    label: str,
    least_span: float,
    reference: Reference | None = None,
    floor: float | None = None,
    marked_steps: Sequence[float] = (),
) -> None:
    """Lines of `values` [T, N] over `steps` [T]: up to five tasks in one panel, more in a panel each.

    Args:
        label: of the vertical axis, with its unit.
        least_span: the vertical axis covers at least this much, so that noise around a constant looks small.
        reference: a dashed line to compare with.
        floor: where the vertical axis begins, whatever the values.
        marked_steps: steps marked by triangles on the horizontal axis.
    """
    window = smoothing_window(len(steps))
    smoothed = np.stack([smooth(column, window) for column in values.T], axis=1)
    low, high = axis_limits(values, smoothed, [reference.value] if reference else [], least_span)
    one_panel = len(names) <= len(COLOURS)
    panels = panels_over_time(figure, steps, 1 if one_panel else len(names))
    columns = panels.shape[1]
    panels[0, 0].set_ylim(low if floor is None else floor, high)
    for axes in panels.flat:
        if reference is not None:
            axes.axhline(reference.value, color=GREY, linestyle=(0, (5, 4)), linewidth=1.2, zorder=2.2)
        if len(marked_steps) > 0:
            axes.plot(
                marked_steps,
                np.zeros(len(marked_steps)),
                "^",
                color=GREY,
                markersize=6 if one_panel else 3.5,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                label="_marked steps",
            )

    if one_panel:
        for task in range(len(names)):
            _draw_line(panels[0, 0], steps, values[:, task], smoothed[:, task], COLOURS[task], names[task])
        panels[0, 0].set(ylabel=label, xlabel="optimizer step")
        _label_lines(panels[0, 0], steps, smoothed, names, reference)
        return
    for task, axes in enumerate(panels.flat[: len(names)]):
        axes.plot(steps, np.delete(smoothed, task, axis=1), color=LIGHT_GREY, linewidth=0.9, zorder=2)
        _draw_line(axes, steps, values[:, task], smoothed[:, task], COLOURS[0], names[task])
        axes.set_title(short_name(names[task], 80 // columns), size=11.5, weight="bold", loc="left")
    figure.supylabel(label, size=12, color="#333333")
    figure.supxlabel("optimizer step", size=12, color="#333333")


def panels_over_time(figure: Figure | SubFigure, steps: np.ndarray, count: int) -> np.ndarray:
    """Axes [rows, columns] that share their scales, horizontally `steps`; the first `count` are visible."""
    columns = 1 if count == 1 else min(5, -(-count // 2))
    panels = figure.subplots(-(-count // columns), columns, sharex=True, sharey=True, squeeze=False)
    panels[0, 0].set_xlim(0, 1.01 * steps[-1])
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(6 if count == 1 else 3, integer=True, steps=[1, 2, 5, 10]))
    for place in range(count, panels.size):
        panels.flat[place].set_visible(False)
        panels.flat[place - columns].xaxis.set_tick_params(labelbottom=True)
    return panels


def _draw_line(axes: Axes, steps: np.ndarray, raw: np.ndarray, smoothed: np.ndarray, colour: str, name: str) -> None:
    # With few steps nothing is smoothed, and dots show single steps that have no neighbour to be joined with.
    few = len(steps) <= 40
    if not few:
        # The more steps, the denser the haze of their lines: paler, so that it stays a background.
        opacity = 0.3 if len(steps) <= 300 else 0.14
        axes.plot(steps, raw, color=colour, linewidth=0.6, alpha=opacity, zorder=1.6, label=f"_raw {name}")
    dots = {"marker": "o", "markersize": 4} if few else {}
    axes.plot(steps, smoothed, color=colour, linewidth=2.2, zorder=2.5, label=name, **dots)


def axis_limits(
    values: np.ndarray, smoothed: np.ndarray, required: Sequence[float], least_span: float
) -> tuple[float, float]:
    """Where the smoothed lines and nine tenths of the raw values fit: outliers must not flatten the lines."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        known = np.zeros(1)
    reached = [*np.percentile(known, [5, 95]), *smoothed[np.isfinite(smoothed)], *required]
    low, high = min(reached), max(reached)
    missing = max(0.0, least_span - (high - low))
    pad = 0.05 * max(high - low, least_span)
    return low - missing / 2 - pad, high + missing / 2 + pad


def _label_lines(
    axes: Axes, steps: np.ndarray, smoothed: np.ndarray, names: Sequence[str], reference: Reference | None
) -> None:
    """Each line's name at its right end, moved apart where lines end close to each other."""
    labels = []  # text, colour, weight, the point named
    for name, colour, line in zip(names, COLOURS, smoothed.T, strict=False):
        known = np.flatnonzero(np.isfinite(line))
        if len(known) > 0:
            labels.append((short_name(name), colour, "bold", (steps[known[-1]], line[known[-1]])))
        else:
            labels.append((f"{short_name(name)} (no data)", colour, "bold", (steps[-1], axes.get_ylim()[0])))
    if reference is not None:
        labels.append((reference.label, GREY, "normal", (steps[-1], reference.value)))
    bottom, top = axes.get_ylim()
    labels.reverse()  # where lines end at the same height, the first task's name comes on top
    heights = spread([(point[1] - bottom) / (top - bottom) for *_, point in labels], gap=0.065)
    for (text, colour, weight, point), height in zip(labels, heights, strict=True):
        axes.annotate(
            text,
            point,
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            weight=weight,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )
