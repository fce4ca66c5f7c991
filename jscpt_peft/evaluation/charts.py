"""What all pictures share (style, heading, names), and heat maps between tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

# Five colours of Okabe and Ito's palette, told apart by colour-blind eyes. More tasks get a panel each instead.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
GREY = "#6B6B6B"

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "lines.solid_capstyle": "round",
    "agg.path.chunksize": 10000,  # long runs overflow the renderer's cells otherwise
}


def new_figure(title: str, subtitle: str, height: float = 5.6) -> Figure:
    """A figure of slide width (10 inches) with room for a two-line heading; no pyplot, so no global state."""
    figure = Figure(figsize=(10, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - 0.95 / height), w_pad=0.06, h_pad=0.06)
    figure.text(0.015, 1 - 0.18 / height, title, size=16, weight="bold", va="top")
    figure.text(0.015, 1 - 0.53 / height, subtitle, size=11.5, color=GREY, va="top")
    return figure


def short_name(name: str, length: int = 22) -> str:
    """`name` cut to `length` characters, and safe from matplotlib's reading of dollar signs."""
    return cut(name, length).replace("$", r"\$")


def cut(name: str, length: int) -> str:
    """`name`, of which the middle is left out where it is longer than `length`."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return name[: length - 1 - tail].rstrip() + "…" + name[-tail:].lstrip()


def draw_matrices(
    figure: Figure | SubFigure, matrices: Sequence[np.ndarray], titles: Sequence[str], names: Sequence[str], label: str
) -> None:
    """Heat maps [N, N] side by side, rows on columns, in one diverging scale; nan (the diagonal) is left grey."""
    # Not below 0.05, so that noise around zero looks pale.
    limit = max([0.05, *(np.nanmax(np.abs(matrix)) for matrix in matrices if np.isfinite(matrix).any())])
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    shown = [short_name(name, 14) for name in names]
    size, places = 10 if len(names) <= 6 else 8, np.arange(len(names)) + 0.5
    for axes, matrix, title in zip(panels, matrices, titles, strict=True):
        axes.grid(False)
        axes.set(facecolor="#DADADA", aspect="equal", xlabel="target task")
        axes.spines[:].set_visible(False)
        cells = axes.pcolormesh(
            np.ma.masked_invalid(matrix), cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="white", linewidth=0.8
        )
        axes.invert_yaxis()
        axes.set_title(title, size=11.5, loc="left")
        axes.set_xticks(places, shown, rotation=40, ha="right", rotation_mode="anchor", size=size)
        axes.set_yticks(places, shown if axes is panels[0] else [""] * len(names), size=size)
        axes.tick_params(length=0)
        if len(names) <= len(COLOURS):
            _write_values(axes, matrix, limit)
    panels[0].set_ylabel("source task")
    bar = figure.colorbar(cells, ax=panels, shrink=0.85, aspect=16, pad=0.02, ticks=MaxNLocator(6))
    bar.outline.set_visible(False)
    bar.set_label(label, labelpad=10)


def _write_values(axes: Axes, matrix: np.ndarray, limit: float) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            text = f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
            colour = "white" if abs(value) > 0.5 * limit else "#333333"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=9.5, color=colour)
