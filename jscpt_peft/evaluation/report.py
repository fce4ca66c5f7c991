"""The results table: zero-shot against trained, per task, mean, worst task, worst group."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .accuracy import worst_task

COLUMN_TITLES = ("task", "zero-shot", "trained", "difference")


@dataclass(frozen=True)
class ResultsRow:
    """Two accuracies in [0, 1], nan where there were no samples. The worst task's row names the task of each."""

    name: str
    zero_shot: float
    trained: float
    zero_shot_task: str | None = None
    trained_task: str | None = None

    @property
    def difference(self) -> float:
        return self.trained - self.zero_shot


@dataclass(frozen=True)
class ResultsTable:
    """The numbers of one run, apart from how they are shown. `worst_group` is None where the data know no groups."""

    tasks: tuple[ResultsRow, ...]
    mean: ResultsRow
    worst_task: ResultsRow
    worst_group: ResultsRow | None = None

    @property
    def summary(self) -> tuple[ResultsRow, ...]:
        rows = (self.mean, self.worst_task)
        return rows if self.worst_group is None else (*rows, self.worst_group)


def results_table(
    before: Mapping[str, float], after: Mapping[str, float], task_names: Sequence[str], prefix: str = ""
) -> ResultsTable:
    """Compare two dicts of [`multi_task_accuracy`].

    Args:
        before: metrics of the base model, zero-shot.
        after: metrics of the trained one, on the same samples.
        task_names: the rows, in this order.
        prefix: what precedes the metrics' names in both dicts, such as Trainer's `eval_` or `test_`.

    Raises:
        ValueError: a metric is missing, or only one of the dicts knows groups.
    """
    names = [f"accuracy/{name}" for name in task_names] + ["mean_accuracy", "worst_task_accuracy"]
    group_name = "worst_group_accuracy"
    if prefix + group_name in before or prefix + group_name in after:
        names.append(group_name)
    for argument, metrics in (("before", before), ("after", after)):
        missing = [prefix + name for name in names if prefix + name not in metrics]
        if missing:
            raise ValueError(
                f"`{argument}` lacks {missing}: it has {sorted(metrics)}. Check `task_names` and `prefix`."
            )

    rows = {name: (before[prefix + name], after[prefix + name]) for name in names}
    return ResultsTable(
        tasks=tuple(ResultsRow(name, *rows[f"accuracy/{name}"]) for name in task_names),
        mean=ResultsRow("mean", *rows["mean_accuracy"]),
        worst_task=ResultsRow(
            "worst task",
            *rows["worst_task_accuracy"],
            zero_shot_task=worst_task(before, task_names, prefix)[0],
            trained_task=worst_task(after, task_names, prefix)[0],
        ),
        worst_group=ResultsRow("worst group", *rows[group_name]) if group_name in rows else None,
    )


def print_results(table: ResultsTable, title: str = "Accuracy in %", console: Console | None = None) -> None:
    """Print the table on the terminal (or on `console`); gains are green, losses red."""
    shown = Table(title=title, title_justify="left")
    for column in COLUMN_TITLES:
        shown.add_column(column, justify="left" if column == "task" else "right")
    for row in table.tasks:
        shown.add_row(*_terminal_cells(row))
    shown.add_section()
    for row in table.summary:
        shown.add_row(*_terminal_cells(row), style="bold" if row is table.mean else None)
    (console or Console()).print(shown)


def results_markdown(table: ResultsTable, title: str = "Accuracy in %") -> str:
    """The table as GitHub Markdown: accuracies in per cent, differences in percentage points."""
    lines = [f"**{title}**", "", f"| {' | '.join(COLUMN_TITLES)} |", "|:---|---:|---:|---:|"]
    lines += [f"| {' | '.join(_markdown_cells(row))} |" for row in table.tasks]
    lines += [f"| {' | '.join(f'**{cell}**' for cell in _markdown_cells(row))} |" for row in table.summary]
    return "\n".join(lines) + "\n"


def results_json(table: ResultsTable) -> dict[str, Any]:
    """The raw numbers (fractions in [0, 1], not rounded; None for nan), for `json.dump`."""
    worst = _json_row(table.worst_task)
    worst["zero_shot_task"], worst["trained_task"] = table.worst_task.zero_shot_task, table.worst_task.trained_task
    return {
        "metric": "accuracy",
        "tasks": {row.name: _json_row(row) for row in table.tasks},
        "mean": _json_row(table.mean),
        "worst_task": worst,
        "worst_group": None if table.worst_group is None else _json_row(table.worst_group),
    }


def write_results(table: ResultsTable, output_dir: str | os.PathLike, title: str = "Accuracy in %") -> list[Path]:
    """Write `results.json` and `results.md` into `output_dir`, which is made if need be. Returns both paths."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    json_path, markdown_path = output_dir / "results.json", output_dir / "results.md"
    content = json.dumps(results_json(table), indent=2, ensure_ascii=False, allow_nan=False)
    json_path.write_text(content + "\n", encoding="utf-8")
    markdown_path.write_text(results_markdown(table, title), encoding="utf-8")
    return [json_path, markdown_path]


def percent(fraction: float) -> str:
    """A fraction in per cent with one decimal."""
    return "n/a" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _points(difference: float) -> str:
    # Adding zero after rounding makes -0.0 a 0.0.
    return "n/a" if math.isnan(difference) else f"{round(100 * difference, 1) + 0.0:+.1f}"


def _cells(row: ResultsRow) -> tuple[str, str, str, str]:
    return _title(row), percent(row.zero_shot), percent(row.trained), _points(row.difference)


def _title(row: ResultsRow) -> str:
    if row.zero_shot_task is None:
        return row.name
    if row.zero_shot_task == row.trained_task:
        return f"{row.name} ({row.trained_task})"
    return f"{row.name} ({row.zero_shot_task}, then {row.trained_task})"


def _terminal_cells(row: ResultsRow) -> list[Text]:
    # Text, not str: a task's name may hold what rich would read as markup.
    cells = [Text(cell) for cell in _cells(row)]
    if cells[3].plain not in ("n/a", "+0.0"):
        cells[3].stylize("green" if row.difference > 0 else "red")
    return cells


def _markdown_cells(row: ResultsRow) -> list[str]:
    return [cell.replace("|", r"\|") for cell in _cells(row)]


def _json_row(row: ResultsRow) -> dict[str, Any]:
    numbers = {"zero_shot": row.zero_shot, "trained": row.trained, "difference": row.difference}
    return {name: None if math.isnan(value) else float(value) for name, value in numbers.items()}
