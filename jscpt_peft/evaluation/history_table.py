"""The scheduler's history as a table: its columns, and how to read them back."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

PER_TASK = (
    "loss",
    "causal_effect",
    "alpha",
    "beta",
    "prompt_factor",
    "task_factor",
    "weight",
    "alpha_after",
    "beta_after",
)
BETWEEN_TASKS = ("affinity", "gradient_cosine")
COLUMNS = ("tasks", "step", "epoch", *PER_TASK, "nonfinite", *BETWEEN_TASKS, "gradient_norm", "scheduler")
SCHEDULER_COLUMNS = ("step_size", "hypergradient_norm", "dev_loss", "neumann_terms", "graph_bytes")
SCHEDULER_COUNTS = ("neumann_terms", "graph_bytes")  # int64; the others are float64


def history_features() -> datasets.Features:
    """The columns' types, for `datasets.load_dataset("json", data_files=path, features=history_features())`.

    Without `features`, `load_dataset` takes the types from the first 10 MB (some 2,000 steps of ten tasks). Give them
    where a column may be null all that time, as `scheduler` is where Ω is never or hardly ever updated.
    """
    number, vector = datasets.Value("float64"), datasets.List(datasets.Value("float64"))
    update = {name: datasets.Value("int64") if name in SCHEDULER_COUNTS else number for name in SCHEDULER_COLUMNS}
    return datasets.Features(
        {
            "tasks": datasets.List(datasets.Value("string")),
            "step": datasets.Value("int64"),
            "epoch": number,
            **dict.fromkeys(PER_TASK, vector),
            "nonfinite": datasets.List(datasets.Value("bool")),
            **dict.fromkeys(BETWEEN_TASKS, datasets.List(vector)),
            "gradient_norm": number,
            "scheduler": update,
        }
    )


def read_history(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a history file as dicts with the keys of [`SchedulerHistory.append`] and `tasks`; absent tasks are None.

    A last line that breaks off, as a killed run leaves it, is dropped with a warning.

    Raises:
        FileNotFoundError: no such file.
        ValueError: any other line that is not a row, or a row of other tasks; the message names file and line.
    """
    return [row for _, row in history_lines(path)]


def history_lines(path: str | os.PathLike) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line of a history file as it stands, and its row; holds one at a time, for a file may have gigabytes.

    Warns and raises as [`read_history`] does, when it comes to the line in question.
    """
    path, tasks = Path(path), None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    warnings.warn(f"{path}: the last line ({number}) breaks off and is left out.", stacklevel=3)
                    return
                raise ValueError(f"{path}, line {number} is no JSON ({error}): remove or repair that line.") from error
            _check_row(row, tasks, f"{path}, line {number}")
            tasks = row["tasks"]
            yield line, row


def history_arrays(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The numbers of T rows, stacked: columns [T], [T, N] and [T, N, N] of float64, null as nan; `nonfinite` is bool.

    Added is `scheduler_step`, [T] of bool: whether the step updated Ω.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("`rows` is empty: the history holds no step yet.")
    names = [name for name in COLUMNS if name not in ("tasks", "nonfinite", "scheduler")]
    arrays = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    arrays["nonfinite"] = np.array([row["nonfinite"] for row in rows], dtype=bool)
    arrays["scheduler_step"] = np.array([row["scheduler"] is not None for row in rows])
    return arrays


def _check_row(row: Any, tasks: list[str] | None, place: str) -> None:
    """Whether it is a row, and of these tasks; the first row's may be any."""
    missing = [name for name in COLUMNS if name not in row] if isinstance(row, dict) else list(COLUMNS)
    if missing:
        raise ValueError(f"{place} is no row of a scheduler history: it lacks {missing}. Remove or repair that line.")
    for name, kind in (("tasks", list), ("step", int)):
        if type(row[name]) is not kind:
            raise ValueError(f"{place}: `{name}` is {row[name]!r}, no {kind.__name__}. Remove or repair that line.")
    if tasks is not None and row["tasks"] != tasks:
        raise ValueError(f"{place} has the tasks {row['tasks']}, the rows before it {tasks}: split the file.")
    count = len(row["tasks"])
    for name in (*PER_TASK, "nonfinite", *BETWEEN_TASKS):
        vectors = [row[name], *row[name]] if name in BETWEEN_TASKS and isinstance(row[name], list) else [row[name]]
        if any(not isinstance(vector, list) or len(vector) != count for vector in vectors):
            raise ValueError(f"{place}: `{name}` is {row[name]}, not of {count} tasks. Remove or repair that line.")
    if any(type(value) is not bool for value in row["nonfinite"]):
        raise ValueError(f"{place}: `nonfinite` is {row['nonfinite']}, no booleans. Remove or repair that line.")
