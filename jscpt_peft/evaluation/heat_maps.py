"""Heat maps of what lies between tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from .history import nanmean
from .style import DARK, short_name

MOST_WRITTEN = 18  # cells side by side in which there is room to write the values


def windows_of(steps: int, count: int) -> list[slice]:
    """`count` times from the beginning to the end, a tenth of the steps each; fewer where they would be the same."""
    width = max(1, steps // 10)
    starts = np.linspace(0, steps - width, count).astype(int)
    return [slice(start, start + width) for start in np.unique(starts)]


def steps_title(steps: np.ndarray) -> str:
    """Names the steps of a window."""
    return f"step {steps[0]:.0f}" if len(steps) == 1 else f"steps {steps[0]:.0f} to {steps[-1]:.0f}"


def mean_between_tasks(values: np.ndarray) -> np.ndarray:
    """Mean over time of what lies between tasks, `[N, N]` from `[T, N, N]`; the diagonal is nan."""
    return nanmean(np.where(np.eye(values.shape[-1], dtype=bool), np.nan, values), axis=0)


def draw_heat_maps(
    figure: Figure | SubFigure,
    matrices: Sequence[np.ndarray],
    titles: Sequence[str],
    names: Sequence[str],
    label: str,
    axis_labels: tuple[str, str],
) -> None:
    """Heat maps [N, N] side by side, rows on columns, in one diverging scale; nan (the diagonal) is left grey."""
    # Not below 0.05, so that noise around zero looks pale.
    limit = max([0.05, *(np.nanmax(np.abs(matrix)) for matrix in matrices if np.isfinite(matrix).any())])
    panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    size, places = min(10, 460 / len(matrices) / len(names) - 1), np.arange(len(names)) + 0.5
    shown = [short_name(name, 14) for name in names]
    slope = {"rotation": 40, "rotation_mode": "anchor"} if len(names) <= 10 else {"rotation": 90}
    for axes, matrix, title in zip(panels, matrices, titles, strict=True):
        axes.grid(False)
        axes.set(facecolor="#DADADA", aspect="equal", xlabel=axis_labels[1])
        axes.spines[:].set_visible(False)
        cells = axes.pcolormesh(
            np.ma.masked_invalid(matrix), cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="white", linewidth=0.8
        )
        axes.set_title(title, weight="normal")
        axes.set_xticks(places, shown, ha="right" if len(names) <= 10 else "center", size=size, **slope)
        axes.set_yticks(places, shown, size=size)
        axes.tick_params(length=0)
        if len(names) * len(matrices) <= MOST_WRITTEN:
            _write_values(axes, matrix, limit)
    panels[0].invert_yaxis()
    panels[0].set_ylabel(axis_labels[0])
    bar = figure.colorbar(cells, ax=panels, shrink=0.85, aspect=16, pad=0.02, ticks=MaxNLocator(6))
    bar.outline.set_visible(False)
    bar.set_label(label, labelpad=10)


def _write_values(axes: Axes, matrix: np.ndarray, limit: float) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            text = f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
            colour = "white" if abs(value) > 0.5 * limit else DARK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=9.5, color=colour)
