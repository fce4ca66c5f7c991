"""Matrices as coloured cells, and heat maps of what lies between tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import setp
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
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


def draw_cells(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: np.ndarray | None = None,
    **colours: object,
) -> QuadMesh:
    """A matrix `[R, C]` as cells, row 0 on top, with `texts` `[R, C]` on them; `colours` are those of `pcolormesh`."""
    cells = axes.pcolormesh(values, edgecolors="white", linewidth=0.8, **colours)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_ylim(len(rows), 0)
    for (row, column), text in [] if texts is None else np.ndenumerate(texts):
        if text:
            brightness = cells.to_rgba(values[row, column])[:3] @ np.array([0.299, 0.587, 0.114])
            colour = "white" if brightness < 0.55 else DARK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=9, color=colour)
    return cells


def draw_heat_maps(
    figure: Figure | SubFigure,
    matrices: Sequence[np.ndarray],
    titles: Sequence[str],
    names: Sequence[str],
    label: str,
    axis_labels: tuple[str, str] = ("", ""),
) -> None:
    """Heat maps [N, N] side by side, rows on columns, in one diverging scale; nan (the diagonal) is left grey."""
    # Not below 0.05, so that noise around zero looks pale.
    limit = max([0.05, *(np.nanmax(np.abs(matrix)) for matrix in matrices if np.isfinite(matrix).any())])
    panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    shown = [short_name(name, 14) for name in names]
    slope = {"rotation": 40, "rotation_mode": "anchor", "ha": "right"} if len(names) <= 10 else {"rotation": 90}
    for axes, matrix, title in zip(panels, matrices, titles, strict=True):
        texts = np.vectorize(_signed)(matrix) if len(names) * len(matrices) <= MOST_WRITTEN else None
        cells = draw_cells(axes, matrix, shown, shown, texts, cmap="RdBu", vmin=-limit, vmax=limit)
        axes.set(facecolor="#DADADA", aspect="equal", xlabel=axis_labels[1])
        axes.set_title(title, weight="normal")
        axes.tick_params(labelsize=min(10, 460 / len(matrices) / len(names) - 1))
        setp(axes.get_xticklabels(), **slope)
    panels[0].set_ylabel(axis_labels[0])
    draw_colour_bar(figure, cells, panels, label, shrink=0.85, aspect=16, ticks=MaxNLocator(6))


def draw_colour_bar(
    figure: Figure | SubFigure, cells: QuadMesh, axes: Axes | Sequence[Axes], label: str, **options: object
) -> None:
    """The scale of cells, beside the axes that show them; `options` are those of `Figure.colorbar`."""
    bar = figure.colorbar(cells, ax=axes, pad=0.02, **options)
    bar.outline.set_visible(False)
    bar.set_label(label, labelpad=10)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else ""
