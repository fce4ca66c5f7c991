"""An evaluation as JSON, as Markdown and on the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from jscpt_peft.choices import markdown

from .confusion import confused_pairs
from .evaluation import METRICS, Evaluation, Robustness
from .results import write_report
from .tables import Rows, markdown_table, percent, print_table

HEADER = ("task", "images", "accuracy", "macro-F1", "ECE")
SHOWN_CONFUSIONS = 10


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints the table of tasks, and that of corruptions, on the terminal (or on `console`)."""
    for title, header, rows, summary in _tables(evaluation):
        print_table(title, header, rows, summary, console)


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Tables in GitHub Markdown: accuracies, F1 scores and calibration errors in per cent."""
    (title, *table), *others = _tables(evaluation)
    known = {name: value for name, value in evaluation.evaluated_model.items() if value is not None}
    about = "; ".join(f"{name.replace('_', ' ')}: {markdown(str(value))}" for name, value in known.items())
    parts = [f"**{markdown(title)}**", f"{about}.", markdown_table(*table)]
    parts.append("ECE: expected calibration error, 15 bins of the highest probability. Every task counts the same.")
    worst = evaluation.worst_task
    matrix, names = evaluation.confusions[worst], evaluation.class_names[worst]
    pairs = confused_pairs(matrix, SHOWN_CONFUSIONS)
    if pairs:
        rows = [(names[true], names[taken], f"{n} of {matrix[true].sum()}") for true, taken, n in pairs]
        parts.append(f"**Most frequent confusions of the worst task, {markdown(worst)}**")
        parts.append(markdown_table(("class", "taken for", "images"), rows))
    for title, *table in others:
        parts += [f"**{markdown(title)}**", markdown_table(*table)]
    return "\n\n".join(parts) + "\n"


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """The raw numbers (fractions in [0, 1], not rounded; None for nan), for `json.dump`."""
    worst, tasks = evaluation.worst_task, evaluation.tasks
    matrix, names = evaluation.confusions[worst], evaluation.class_names[worst]
    return {
        "subject": dict(evaluation.evaluated_model),
        "task_set": evaluation.task_set,
        "tasks": {name: _plain(row) for name, row in tasks.to_dict("index").items()},
        "mean": _plain(evaluation.means.to_dict()),
        "worst_task": {"task": worst, "accuracy": float(tasks["accuracy"][worst])},
        "worst_group": evaluation.worst_group,
        "groups": evaluation.groups.to_dict("records"),
        "confusion_of_worst_task": {
            "images_of_class": dict(zip(names, matrix.sum(axis=1).tolist(), strict=True)),
            "mistakes": [
                {"class": names[true], "taken_for": names[taken], "images": count}
                for true, taken, count in confused_pairs(matrix)
            ],
        },
        "robustness": None if evaluation.robustness is None else _robustness_json(evaluation.robustness),
    }


def write_evaluation(evaluation: Evaluation, output_dir: str | os.PathLike) -> list[Path]:
    """Writes `evaluation.json` and `evaluation.md` into `output_dir`, made if need be. Returns both paths."""
    return write_report(output_dir, "evaluation", evaluation_json(evaluation), evaluation_markdown(evaluation))


def _tables(evaluation: Evaluation) -> Iterator[tuple[str, tuple[str, ...], Rows, Rows]]:
    """Title, header, rows and summary of each table."""
    tasks, worst, group = evaluation.tasks, evaluation.worst_task, evaluation.worst_group
    rows = [
        [name, str(row["images"]), *(percent(row[each]) for each in METRICS)]
        for name, row in tasks.to_dict("index").items()
    ]
    summary = [
        ["mean", str(tasks["images"].sum()), *map(percent, evaluation.means)],
        [f"worst task ({worst})", *rows[tasks.index.get_loc(worst)][1:]],
    ]
    if group is not None:
        name = f"worst group ({group['task']}, group {group['group']})"
        summary.append([name, str(group["images"]), percent(group["accuracy"]), "", ""])
    yield f"{evaluation.task_set}: test images, in %", HEADER, rows, summary
    if evaluation.robustness is None:
        return
    means = evaluation.robustness.means.assign(mean=lambda each: each.mean(axis=1))
    title = (
        f"Mean accuracy under corruptions in %, at most {evaluation.robustness.images_per_task} images per task "
        f"(uncorrupted: {percent(evaluation.robustness.clean.mean())})"
    )
    header = ("corruption", *(f"severity {each}" for each in means.columns[:-1]), "mean")
    rows = [[name, *map(percent, row)] for name, row in means.iterrows()]
    yield title, header, rows, [["mean", *map(percent, means.mean())]]


def _robustness_json(robustness: Robustness) -> dict[str, Any]:
    def entry(accuracies: pd.Series) -> dict[str, Any]:
        return _plain({"mean": accuracies.mean()}) | {"tasks": _plain(accuracies.to_dict())}

    corruptions: dict[str, dict[str, Any]] = {}
    for (corruption, severity), accuracies in robustness.accuracies.iterrows():
        corruptions.setdefault(corruption, {})[str(severity)] = entry(accuracies)
    return {
        "images_per_task": robustness.images_per_task,
        "uncorrupted": entry(robustness.clean),
        **_plain({"mean": robustness.means.mean(axis=None)}),
        "corruptions": corruptions,
    }


def _plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if pd.isna(number) else number for name, number in numbers.items()}
