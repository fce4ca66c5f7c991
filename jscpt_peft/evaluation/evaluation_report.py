"""An evaluation as JSON, as Markdown and on the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .confusion import confused_pairs
from .evaluation_results import Evaluation, Robustness
from .report import percent

COLUMNS = ("task", "images", "accuracy", "macro-F1", "ECE")
SHOWN_CONFUSIONS = 10


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the table of tasks, and that of corruptions, on the terminal (or on `console`)."""
    console = console or Console()
    tables = [(_title(evaluation), COLUMNS, [*_task_rows(evaluation)], [*_summary_rows(evaluation)])]
    if evaluation.robustness is not None:
        *rows, mean = _corruption_rows(evaluation.robustness)
        header = _corruption_header(evaluation.robustness)
        tables.append((_robustness_title(evaluation.robustness), header, rows, [mean]))
    for title, header, rows, summary in tables:
        shown = Table(title=title, title_justify="left")
        for number, column in enumerate(header):
            shown.add_column(column, justify="right" if number else "left")
        for number, row in enumerate([*rows, *summary]):
            if number == len(rows):
                shown.add_section()
            shown.add_row(*(Text(cell) for cell in row))  # a name may hold what rich would read as markup
        console.print(shown)


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Tables in GitHub Markdown: accuracies, F1 scores and calibration errors in per cent."""
    worst, robustness = evaluation.worst_task, evaluation.robustness
    bold = [[f"**{cell}**" if cell else "" for cell in row] for row in _summary_rows(evaluation)]
    known = {name: value for name, value in evaluation.subject.items() if value is not None}
    about = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in known.items())
    parts = [f"**{_title(evaluation)}**", f"{about}.", _markdown(COLUMNS, [*_task_rows(evaluation), *bold])]
    parts.append(
        "ECE: expected calibration error, 15 bins of the highest probability. The mean counts every task the same."
    )
    pairs = confused_pairs(worst.confusion, SHOWN_CONFUSIONS)
    if pairs:
        parts.append(f"**Most frequent confusions of the worst task, {worst.name}**")
        totals, names = worst.confusion.sum(axis=1), worst.class_names
        rows = [(names[true], names[taken], f"{count} of {totals[true]}") for true, taken, count in pairs]
        parts.append(_markdown(("class", "taken for", "images"), rows))
    if robustness is not None:
        parts.append(f"**{_robustness_title(robustness)}**")
        parts.append(_markdown(_corruption_header(robustness), _corruption_rows(robustness)))
    return "\n\n".join(parts) + "\n"


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """The raw numbers (fractions in [0, 1], not rounded; None for nan), for `json.dump`."""
    worst, group = evaluation.worst_task, evaluation.worst_group
    return {
        "subject": dict(evaluation.subject),
        "task_set": evaluation.task_set,
        "tasks": {
            task.name: {
                "images": task.num_images,
                "accuracy": _number(task.accuracy),
                "macro_f1": _number(task.macro_f1),
                "expected_calibration_error": _number(task.expected_calibration_error),
            }
            for task in evaluation.tasks
        },
        "mean": {
            "accuracy": _number(evaluation.mean_accuracy),
            "macro_f1": _number(evaluation.mean_macro_f1),
            "expected_calibration_error": _number(evaluation.mean_expected_calibration_error),
        },
        "worst_task": {"task": worst.name, "accuracy": _number(worst.accuracy)},
        "worst_group": None if group is None else vars(group),
        "groups": [vars(each) for each in evaluation.groups],
        "confusion_of_worst_task": {
            "images_of_class": {
                name: int(count) for name, count in zip(worst.class_names, worst.confusion.sum(axis=1), strict=True)
            },
            "mistakes": [
                {"class": worst.class_names[true], "taken_for": worst.class_names[taken], "images": count}
                for true, taken, count in confused_pairs(worst.confusion, worst.confusion.size)
            ],
        },
        "robustness": None if evaluation.robustness is None else _robustness_json(evaluation.robustness),
    }


def write_evaluation(evaluation: Evaluation, output_dir: str | os.PathLike) -> list[Path]:
    """Write `evaluation.json` and `evaluation.md` into `output_dir`, made if need be. Returns both paths."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    json_path, markdown_path = output_dir / "evaluation.json", output_dir / "evaluation.md"
    content = json.dumps(evaluation_json(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
    json_path.write_text(content + "\n", encoding="utf-8")
    markdown_path.write_text(evaluation_markdown(evaluation), encoding="utf-8")
    return [json_path, markdown_path]


# ---- rows -----------------------------------------------------------------------------------------------------------


def _title(evaluation: Evaluation) -> str:
    return f"{evaluation.task_set}: test images, in %"


def _task_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    for task in evaluation.tasks:
        values = (task.accuracy, task.macro_f1, task.expected_calibration_error)
        yield task.name, str(task.num_images), *map(percent, values)


def _summary_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    means = (evaluation.mean_accuracy, evaluation.mean_macro_f1, evaluation.mean_expected_calibration_error)
    yield "mean", str(sum(task.num_images for task in evaluation.tasks)), *map(percent, means)
    worst, group = evaluation.worst_task, evaluation.worst_group
    values = (worst.accuracy, worst.macro_f1, worst.expected_calibration_error)
    yield f"worst task ({worst.name})", str(worst.num_images), *map(percent, values)
    if group is not None:
        yield (
            f"worst group ({group.task}, group {group.group})",
            str(group.num_images),
            percent(group.accuracy),
            "",
            "",
        )


def _robustness_title(robustness: Robustness) -> str:
    return (
        f"Mean accuracy under corruptions in %, at most {robustness.images_per_task} images a task "
        f"(uncorrupted: {percent(robustness.clean_mean)})"
    )


def _corruption_header(robustness: Robustness) -> tuple[str, ...]:
    return "corruption", *(f"severity {severity}" for severity in robustness.severities), "mean"


def _corruption_rows(robustness: Robustness) -> Iterator[tuple[str, ...]]:
    means = robustness.means
    for name, values in zip(robustness.corruptions, means, strict=True):
        yield name, *map(percent, values), percent(values.mean())
    yield "mean", *map(percent, means.mean(axis=0)), percent(means.mean())


def _robustness_json(robustness: Robustness) -> dict[str, Any]:
    def by_task(values: Iterable[float]) -> dict[str, float | None]:
        return {name: _number(value) for name, value in zip(robustness.task_names, values, strict=True)}

    corrupted = {
        corruption: {
            str(severity): {"mean": _number(mean), "tasks": by_task(values)}
            for severity, mean, values in zip(robustness.severities, means, by_severity, strict=True)
        }
        for corruption, means, by_severity in zip(
            robustness.corruptions, robustness.means, robustness.accuracies, strict=True
        )
    }
    return {
        "images_per_task": robustness.images_per_task,
        "uncorrupted": {"mean": _number(robustness.clean_mean), "tasks": by_task(robustness.clean)},
        "mean": _number(robustness.means.mean()),
        "corruptions": corrupted,
    }


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
