"""The table of a paper: methods in rows, mean ± standard deviation, the best in bold and the second underlined."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from .accuracy_tables import PARTS, harmonic_mean
from .tables import joined_cells, percent

MEAN = "mean"


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds.

    Args:
        runs: a row for each run and task, with `method`, `seed`, `task` and `accuracy` in [0, 1].

    Returns:
        A row for each method, in the order of `runs`; columns (task or `MEAN`, `"mean"` | `"std"`). `std` is that of a
        sample, nan of a single seed. Where every task is one of `"<task>, base"` and `"<task>, new"`, the means of
        both and their harmonic mean (`PARTS`) take the place of `MEAN`.
    """
    wide = runs.pivot_table(index=["method", "seed"], columns="task", values="accuracy", sort=False)
    tasks = list(wide)
    base, new = ([task for task in tasks if task.endswith(f", {part}")] for part in PARTS[:2])
    if base and new and len(base) + len(new) == len(tasks):
        means = [wide[part].mean(axis=1) for part in (base, new)]
        both = [harmonic_mean(*pair) for pair in zip(*means, strict=True)]
        wide = wide.assign(**dict(zip(PARTS, (*means, both), strict=True)))
    else:
        wide[MEAN] = wide.mean(axis=1)
    return wide.groupby("method", sort=False).agg(["mean", "std"])


def comparison_markdown(summary: pd.DataFrame, further: Mapping[str, Mapping[str, str]]) -> str:
    """A summary as GitHub Markdown, accuracies in per cent.

    Args:
        summary: of `summarise`.
        further: columns beside it: header -> method -> cell; a method that is left out has none.
    """
    names = list(summary.columns.get_level_values(0).unique())
    columns = [*(_marked(summary[name]) for name in names), *further.values()]
    rows = [[method, *(column.get(method, "") for column in columns)] for method in summary.index]
    return joined_cells(["method", *names, *further], rows)


def _marked(column: pd.DataFrame) -> dict[str, str]:
    """The cells of one column; equal means as printed are equally good."""
    shown = {method: percent(value) for method, value in column["mean"].items()}
    ranks = sorted({float(text) for text in shown.values() if text != "n/a"}, reverse=True)
    cells = {}
    for method, text in shown.items():
        spread = column["std"][method]
        cell = text if pd.isna(spread) else f"{text} ± {percent(spread)}"
        if text != "n/a" and len(ranks) > 1:
            place = ranks.index(float(text))
            cell = {0: f"**{cell}**", 1: f"<u>{cell}</u>"}.get(place, cell)
        cells[method] = cell
    return cells
