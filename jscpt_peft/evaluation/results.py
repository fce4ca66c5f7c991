"""The results table of a run: zero-shot against trained, per task, mean, worst task, worst group."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from .tables import markdown_table, percent, points, print_table

HEADER = ("task", "zero-shot", "trained", "difference")
SUMMARY = {"mean": "mean_accuracy", "worst_task": "worst_task_accuracy", "worst_group": "worst_group_accuracy"}


def results_table(
    before: Mapping[str, float], after: Mapping[str, float], task_names: Sequence[str], prefix: str = ""
) -> pd.DataFrame:
    """Compares two dicts of [`multi_task_accuracy`].

    Args:
        before: metrics of the base model, zero-shot.
        after: metrics of the trained one, on the same samples.
        task_names: the rows, in this order.
        prefix: what precedes the metrics' names in both dicts, such as Trainer's `eval_` or `test_`.

    Returns:
        Accuracies in [0, 1], nan without samples, in columns `zero_shot`, `trained` and `difference`. The index has
        the rows ("task", name) and ("summary", "mean" | "worst_task" | "worst_group"), the last one where the data
        know groups.

    Raises:
        ValueError: a metric is missing, or only one of the dicts knows groups.
    """
    keys = {("task", name): f"{prefix}accuracy/{name}" for name in task_names}
    keys |= {("summary", name): prefix + key for name, key in SUMMARY.items()}
    if keys["summary", "worst_group"] not in before.keys() | after.keys():
        del keys["summary", "worst_group"]
    for argument, metrics in (("before", before), ("after", after)):
        missing = [key for key in keys.values() if key not in metrics]
        if missing:
            raise ValueError(
                f"`{argument}` lacks {missing}: it has {sorted(metrics)}. Check `task_names` and `prefix`."
            )
    columns = {name: [m[key] for key in keys.values()] for name, m in (("zero_shot", before), ("trained", after))}
    table = pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(keys, names=["kind", "name"]), dtype=float)
    return table.assign(difference=table["trained"] - table["zero_shot"])


def print_results(table: pd.DataFrame, title: str = "Accuracy in %", console: Console | None = None) -> None:
    """Prints the table on the terminal (or on `console`); gains are green, losses red."""
    print_table(title, HEADER, _rows(table, "task"), _rows(table, "summary"), console)


def results_markdown(table: pd.DataFrame, title: str = "Accuracy in %") -> str:
    """The table as GitHub Markdown: accuracies in per cent, differences in percentage points."""
    return f"**{title}**\n\n{markdown_table(HEADER, _rows(table, 'task'), _rows(table, 'summary'))}\n"


def results_json(table: pd.DataFrame) -> dict[str, Any]:
    """The raw numbers (fractions in [0, 1], not rounded; None for nan), for `json.dump`."""
    numbers = table.astype(object).where(table.notna(), None)
    summary = numbers.loc["summary"].to_dict("index")
    return {
        "metric": "accuracy",
        "tasks": numbers.loc["task"].to_dict("index"),
        "mean": summary["mean"],
        "worst_task": summary["worst_task"] | {f"{column}_task": name for column, name in _worst_tasks(table).items()},
        "worst_group": summary.get("worst_group"),
    }


def write_results(table: pd.DataFrame, output_dir: str | os.PathLike, title: str = "Accuracy in %") -> list[Path]:
    """Writes `results.json` and `results.md` into `output_dir`, which is made if need be. Returns both paths."""
    return write_report(output_dir, "results", results_json(table), results_markdown(table, title))


def write_report(output_dir: str | os.PathLike, stem: str, content: dict[str, Any], markdown: str) -> list[Path]:
    """Writes `<stem>.json` and `<stem>.md`. Returns both paths."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = [output_dir / f"{stem}.json", output_dir / f"{stem}.md"]
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    paths[0].write_text(text + "\n", encoding="utf-8")
    paths[1].write_text(markdown, encoding="utf-8")
    return paths


def _worst_tasks(table: pd.DataFrame) -> dict[str, str]:
    """The task with the lowest accuracy before and after, the first of several."""
    return {column: table.loc["task"][column].idxmin() for column in ("zero_shot", "trained")}


def _rows(table: pd.DataFrame, kind: str) -> list[list[str]]:
    names = {name: name for name in table.loc[kind].index}
    if kind == "summary":
        worst = dict.fromkeys(_worst_tasks(table).values())  # once, where it is the same before and after
        names = {name: name.replace("_", " ") for name in names} | {
            "worst_task": f"worst task ({', then '.join(worst)})"
        }
    return [
        [names[row.Index], percent(row.zero_shot), percent(row.trained), points(row.difference)]
        for row in table.loc[kind].itertuples()
    ]
