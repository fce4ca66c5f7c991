"""What the runs of a table have found: results.parquet, and results.md in the paper's layout."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measured_run import Run
from reproduced_tables import TABLES

from jscpt_peft.evaluation.comparison import MEAN, comparison_markdown, summarise
from jscpt_peft.evaluation.comparison_figure import draw_comparison
from jscpt_peft.evaluation.intervals import Interval, paired_interval
from jscpt_peft.evaluation.tables import markdown_table, points


def collect(results: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Results of runs that did not diverge, tidy: a row for each run and task."""
    rows = []
    for result in results:
        alike = {**result, "words": shlex.join(result["words"])}
        by_task = {name: alike.pop(name) for name in ("accuracy", "right")}
        for task in by_task["accuracy"]:
            rows.append({**alike, "task": task, **{name: each[task] for name, each in by_task.items()}})
    return pd.DataFrame(rows)


def write_tables(name: str, reference: str, output: Path, runs: Sequence[Run]) -> None:
    """`results.parquet`, and `results.md`: the means of all parts, each part with its tasks and costs, what diverged.

    A method of which a run diverged is left out of that part: the mean of its other seeds would flatter it. The runs
    are those by which rates were chosen, and those of the chosen rates.
    """
    done = [result for run in runs if (result := run.result(output)) is not None]
    if not done:
        return
    diverged = [result for result in done if "diverged" in result]
    broken = {(result["setting"], result["method"]) for result in diverged if result["split"] == "test"}
    results = collect(
        each for each in done if each["split"] == "test" and (each["setting"], each["method"]) not in broken
    )
    text = f"# {name}\n"
    (output / "results.parquet").unlink(missing_ok=True)
    if not results.empty:
        results.to_parquet(output / "results.parquet")
        parts = dict(list(results.groupby("setting", sort=False)))
        text += part_tables(parts, reference, TABLES[name].published)
        if len(parts) > 1 and all(setting[0].isdigit() for setting in parts):  # amounts of training data
            draw_comparison(results, output)
    if diverged:
        columns = ["setting", "method", "split", "seed", "learning_rate", "diverged"]
        rows = [[str(result[column]) for column in columns] for result in diverged]
        text += "\n## Runs that diverged\n\nWhere one for test images did, its method is left out of the table.\n\n"
        text += f"{markdown_table(['part', 'method', 'images', 'seed', 'learning rate', 'message'], rows)}\n"
    (output / "results.md").write_text(text, encoding="utf-8")


def part_tables(parts: Mapping[str, pd.DataFrame], reference: str, published: Mapping[str, Mapping[str, str]]) -> str:
    """The means of all parts beside each other, if there are several, and a table for each part."""
    text = ""
    summaries = {setting: summarise(part) for setting, part in parts.items()}
    found = {setting: differences(part, reference) for setting, part in parts.items()}
    means = {setting: summary[MEAN] for setting, summary in summaries.items() if MEAN in summary}
    if len(means) > 1:
        text += f"\nMean test accuracy in %.\n\n{comparison_markdown(pd.concat(means, axis=1, sort=False), {})}\n"
        compared = list(dict.fromkeys(method for each in found.values() for method in each))
        rows = [[method, *(_words(each.get(method)) for each in found.values())] for method in compared]
        if rows:
            text += f"\n{markdown_table([f'minus {reference}', *found], rows)}\n"
    for setting, part in parts.items():
        columns = costs(part)
        if setting in published:
            columns = {"mean, as published": published[setting], **columns}
        steps, seeds = part["steps"].max(), ", ".join(map(str, sorted(part["seed"].unique())))
        text += f"\n## {setting}\n\nTest accuracy in %; {steps} steps, seeds {seeds}.\n\n"
        text += f"{comparison_markdown(summaries[setting], columns)}\n"
        if found[setting]:
            rows = [[method, _words(each)] for method, each in found[setting].items()]
            text += f"\n{markdown_table([f'minus {reference}', 'points (95 % interval)'], rows)}\n"
    return text


def costs(part: pd.DataFrame) -> dict[str, Mapping[str, str]]:
    """Columns beside the accuracies of one part: header -> method -> cell."""
    by_method = part.groupby("method", sort=False)
    seconds = by_method["train_seconds"].mean().where(by_method["steps"].mean() > 0, 0)
    columns = {
        "learning rate": by_method["learning_rate"].first().map("{:g}".format),
        "parameters": by_method["trainable_parameters"].first().map("{:,}".format),
        "ms per step": (1000 * seconds / by_method["steps"].mean()).fillna(0).map("{:.0f}".format),
        "training, s": seconds.map("{:.0f}".format),
    }
    if part["worst_group"].notna().any():
        columns = {"worst group": (100 * by_method["worst_group"].mean()).map("{:.1f}".format), **columns}
    return {name: dict(column) for name, column in columns.items()}


def differences(part: pd.DataFrame, reference: str) -> dict[str, Interval]:
    """Each method's mean minus the reference's, with its interval, over the seeds that both have."""
    if reference not in set(part["method"]):
        return {}
    pivot = part.pivot(index=["task", "seed"], columns="method", values="right")
    alike = part.groupby("method")["images"].nunique().max() == 1
    found = {}
    for method in part["method"].unique():
        both = pivot[[method, reference]].dropna() if method != reference else pivot[:0]
        if not both.empty:
            by_task = [
                np.stack([_bits(one) - _bits(other) for one, other in zip(each[method], each[reference], strict=True)])
                for _, each in both.groupby("task", sort=False)
            ]
            found[method] = paired_interval(by_task, same_images=alike)
    return found


def _bits(text: str) -> np.ndarray:
    return np.array([*text], dtype=float)


def _words(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{points(interval.difference)} ({points(interval.low)} to {points(interval.high)})"
