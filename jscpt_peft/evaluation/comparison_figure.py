"""Accuracy over growing training data, in a panel for each task (counterpart of the paper's Fig. 3)."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from .comparison import MEAN, summarise
from .style import COLOURS, LIGHT_GREY, label_axes, new_figure, panels_in_rows, short_name, write_figures

FILE = "growing_data.png"
COLUMNS = 4


def draw_comparison(runs: pd.DataFrame, output_dir: str | os.PathLike) -> list[Path]:
    """Draws `growing_data.png`.

    Args:
        runs: as for `summarise`, with a column `setting` in the order of the horizontal axis.
        output_dir: made if need be.

    Returns:
        The path of the figure.
    """
    return write_figures(output_dir, {FILE: lambda: comparison_figure(runs)})


def comparison_figure(runs: pd.DataFrame) -> Figure:
    """Means with standard deviations over seeds; the best methods in colour, the others grey."""
    of_setting = {setting: summarise(part) for setting, part in runs.groupby("setting", sort=False)}
    table = 100 * pd.concat(of_setting, names=["setting"])
    means = table[MEAN]["mean"].groupby("method").mean().sort_values(ascending=False, kind="stable")
    tasks = [MEAN, *(name for name in table.columns.get_level_values(0).unique() if name != MEAN)]
    rows = -(-len(tasks) // COLUMNS)
    amounts = [setting.partition(" ")[0] for setting in of_setting]
    unit = next(iter(of_setting)).partition(" ")[2] or "part of the training images"
    note = f"Horizontally: {unit}. Mean and standard deviation over seeds." + (
        " Grey: other methods." if len(means) > len(COLOURS) else ""
    )
    figure = new_figure("Test accuracy with more training data", note, height=2.4 + 2.6 * rows)
    panels = panels_in_rows(figure, len(tasks), min(len(tasks), COLUMNS))
    colours = dict(zip(means.index, COLOURS, strict=False))
    for axes, task in zip(panels, tasks, strict=True):
        axes.set_title("mean of tasks" if task == MEAN else short_name(task))
        for method in reversed(means.index):
            line = table[task].xs(method, level="method").reindex(list(of_setting))
            colour = colours.get(method, LIGHT_GREY)
            name = method if method in colours else None
            axes.errorbar(amounts, line["mean"], line["std"], color=colour, marker="o", markersize=4, label=name)
    label_axes(figure, "", "accuracy in %")
    lines, names = panels[0].get_legend_handles_labels()  # the best method, drawn last, comes first
    figure.legend(lines[::-1], names[::-1], loc="outside lower center", ncols=3, frameon=False)
    return figure
