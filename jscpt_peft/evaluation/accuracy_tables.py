"""Tables of accuracies alone: base and new classes, and every task's prompts on every task's images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from .results import write_report
from .tables import markdown_table, percent, print_table

PARTS = ("base", "new", "harmonic mean")


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n); 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def base_to_new_table(
    found: Mapping[str, tuple[Sequence[float], Sequence[float]]], task_names: Sequence[str]
) -> pd.DataFrame:
    """Accuracies on base and new classes and their harmonic mean.

    Args:
        found: what was tested -> its accuracies `[N]` on base and on new classes.
        task_names: of the N tasks.

    Returns:
        A row per task and the row `mean`, whose harmonic mean is that of the means, as CoOp's followers report it;
        columns `<what was tested>: base`, `... new` and `... harmonic mean`.
    """
    columns = {}
    for model, (base, new) in found.items():
        means = [sum(part) / len(part) for part in (base, new)]
        base, new = [*base, means[0]], [*new, means[1]]
        both = [harmonic_mean(*pair) for pair in zip(base, new, strict=True)]
        columns |= {f"{model}: {part}": values for part, values in zip(PARTS, (base, new, both), strict=True)}
    return pd.DataFrame(columns, index=[*task_names, "mean"])


def write_accuracies(
    table: pd.DataFrame, title: str, output_dir: str | os.PathLike, stem: str, first: str = "task"
) -> list[Path]:
    """Writes a table of fractions as `<stem>.json` and, in per cent, as `<stem>.md`. Returns both paths."""
    rows, summary = _cells(table)
    text = f"**{title}**\n\n{markdown_table([first, *table.columns], rows, summary)}\n"
    return write_report(output_dir, stem, table.to_dict("index"), text)


def print_accuracies(table: pd.DataFrame, title: str, console: Console | None = None, first: str = "task") -> None:
    """Prints a table of fractions in per cent on the terminal, or on `console`."""
    print_table(title, [first, *table.columns], *_cells(table), console)


def _cells(table: pd.DataFrame) -> tuple[list[list[str]], list[list[str]]]:
    """The rows, and the last one apart where it is a mean."""
    rows = [[str(name), *map(percent, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return (rows[:-1], rows[-1:]) if table.index[-1] == "mean" else (rows, [])
