"""What all figures share: colours, heading, panels, names, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

# Five colours of Okabe and Ito's palette, which colour-blind eyes tell apart. No figure needs more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
GREY, LIGHT_GREY, DARK = "#6B6B6B", "#C9C9C9", "#333333"
DASHED = {"color": GREY, "linestyle": (0, (5, 4)), "linewidth": 1.2, "zorder": 2.2}  # what values are compared with
DOTS_PER_INCH = 180

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "grid.color": "#E6E6E6",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": DARK,
    "ytick.labelcolor": DARK,
    "lines.solid_capstyle": "round",
    "agg.path.chunksize": 10000,  # long runs overflow the renderer's cells otherwise
}


def write_figures(output_dir: str | os.PathLike, makers: Mapping[str, Callable[[], Figure]]) -> list[Path]:
    """Makes and saves the figures, file name -> function, into `output_dir`, made if need be. Returns their paths."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    # A style of our own, whatever the user's matplotlibrc says; theirs is back afterwards.
    with style.context(["default", STYLE]):
        for name, make in makers.items():
            make().savefig(output_dir / name, dpi=DOTS_PER_INCH, facecolor="white")
    return [output_dir / name for name in makers]


def new_figure(title: str, subtitle: str, height: float = 5.6) -> Figure:
    """A figure of slide width (10 inches) with room for a two-line heading; no pyplot, so no global state."""
    figure = Figure(figsize=(10, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - 0.95 / height), w_pad=0.06, h_pad=0.06)
    figure.text(0.015, 1 - 0.18 / height, title, size=16, weight="bold", va="top")
    figure.text(0.015, 1 - 0.53 / height, subtitle, size=11.5, color=GREY, va="top")
    return figure


def panels_in_rows(figure: Figure | SubFigure, count: int, columns: int) -> list[Axes]:
    """`count` axes that share their scales. Where a last row is not full, those above its gaps have ticks."""
    panels = figure.subplots(-(-count // columns), columns, sharex=True, sharey=True, squeeze=False)
    for place in range(count, panels.size):
        panels.flat[place].remove()
        panels.flat[place - columns].xaxis.set_tick_params(labelbottom=True)
    return list(panels.flat[:count])


def label_axes(figure: Figure | SubFigure, x: str, y: str) -> None:
    """Labels for all panels of a figure together."""
    figure.supxlabel(x, size=12, color=DARK)
    figure.supylabel(y, size=12, color=DARK)


def short_name(name: str, length: int = 22) -> str:
    """`name` cut to `length` characters, and safe from matplotlib's reading of dollar signs."""
    return cut(name, length).replace("$", r"\$")


def cut(name: str, length: int) -> str:
    """`name`, without its middle where it is longer than `length`."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return name[: length - 1 - tail].rstrip() + "…" + name[-tail:].lstrip()
