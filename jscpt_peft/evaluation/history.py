"""The scheduler's history: one JSON object a line for every step, a plain table for pandas and datasets."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

PER_TASK = ("loss", "causal_effect", "weight", "alpha", "beta")
BETWEEN_TASKS = ("affinity", "gradient_cosine")
COLUMNS = ("tasks", "step", "epoch", *PER_TASK, *BETWEEN_TASKS, "gradient_norm", "scheduler")
SCHEDULER_COLUMNS = ("step_size", "hypergradient_norm", "dev_loss", "neumann_terms")


class SchedulerHistory:
    """Writes the history, one row a step, each on disk as soon as it is appended. For one process only.

    Every row holds the same keys with the same types, so that `pandas.read_json(path, lines=True)` and
    `datasets.load_dataset("json", data_files=path)` read the file as a table. What is not finite (an absent task's
    loss) is written as null, for JSON knows no nan.

    Args:
        path: the file, by convention `scheduler_history.jsonl` in the run's output directory.
        tasks: [N] names in task order.
        resume_step: keep the rows of an existing file up to and including this step, the one of the checkpoint that
            training resumes from, and drop what was written after it. 0 starts a new history.

    Raises:
        ValueError: the rows kept are damaged or belong to other tasks.

    Example:
        >>> with SchedulerHistory("scheduler_history.jsonl", ["art", "sketch"]) as history:
        ...     history.append(step=1, epoch=0.1, loss=[1.5, 2.0], ...)
    """

    def __init__(self, path: str | os.PathLike, tasks: Sequence[str], resume_step: int = 0) -> None:
        self.path = Path(path)
        self.tasks = list(tasks)
        kept = []
        if resume_step > 0 and self.path.exists():
            kept = [row for row in read_history(self.path) if row["step"] <= resume_step]
            if kept and kept[0]["tasks"] != self.tasks:
                raise ValueError(
                    f"`tasks` is {self.tasks}, but {self.path} was written for {kept[0]['tasks']}: "
                    f"resume with the tasks of that run, or write to another file."
                )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Through a second file, so that a crash here cannot lose the rows of hours.
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        fresh.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def append(
        self,
        *,
        step: int,
        epoch: float,
        loss: Sequence[float],
        causal_effect: Sequence[float],
        weight: Sequence[float],
        alpha: Sequence[float],
        beta: Sequence[float],
        affinity: Sequence[Sequence[float]],
        gradient_cosine: Sequence[Sequence[float]],
        gradient_norm: float,
        scheduler: Mapping[str, float] | None = None,
    ) -> None:
        """Append one row and flush it.

        Args:
            step: optimizer steps taken, from 1.
            epoch: the same in passes over the largest task.
            loss: [N] task losses (Eq. 3), nan for an absent task.
            causal_effect: [N] Δ (Eq. 4).
            weight: [N] φ (Eq. 6).
            alpha: [N] α of Eq. 6.
            beta: [N] β of Eq. 6.
            affinity: [N, N] A (Eq. 5), row = source, column = target.
            gradient_cosine: [N, N] cosine of the tasks' gradients.
            gradient_norm: norm of the step's gradient (Eq. 9).
            scheduler: where the step updated Ω (Eq. 11): `step_size` and `neumann_terms` of the Neumann series,
                `hypergradient_norm`, `dev_loss`. None elsewhere.

        Lists, arrays and CPU tensors without gradient are accepted.

        Raises:
            ValueError: a value of another shape, or other keys in `scheduler`.
        """
        count = len(self.tasks)
        row: dict[str, Any] = {"tasks": self.tasks, "step": int(step), "epoch": _numbers("epoch", epoch, ())}
        vectors = {"loss": loss, "causal_effect": causal_effect, "weight": weight, "alpha": alpha, "beta": beta}
        for name, values in vectors.items():
            row[name] = _numbers(name, values, (count,))
        for name, values in {"affinity": affinity, "gradient_cosine": gradient_cosine}.items():
            row[name] = _numbers(name, values, (count, count))
        row["gradient_norm"] = _numbers("gradient_norm", gradient_norm, ())
        row["scheduler"] = None if scheduler is None else _scheduler_columns(scheduler)
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SchedulerHistory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_history(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a history file as dicts with the keys of [`SchedulerHistory.append`] and `tasks`; absent tasks are None.

    A last line that breaks off, as a killed run leaves it, is dropped with a warning.

    Raises:
        FileNotFoundError: no such file.
        ValueError: any other line that is not a row, or a row of other tasks; the message names file and line.
    """
    path = Path(path)
    content = path.read_bytes()
    lines = content.splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not content.endswith(b"\n"):
                warnings.warn(f"{path}: the last line ({number}) breaks off and is left out.", stacklevel=2)
                break
            raise ValueError(f"{path}, line {number} is no JSON ({error}): remove or repair that line.") from error
        _check_row(row, rows[0] if rows else row, f"{path}, line {number}")
        rows.append(row)
    return rows


def history_arrays(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The numbers of T rows, stacked: columns [T], [T, N] and [T, N, N] of float64, null as nan.

    Added is `scheduler_step`, [T] of bool: whether the step updated Ω.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("`rows` is empty: the history holds no step yet.")
    names = [name for name in COLUMNS if name not in ("tasks", "scheduler")]
    arrays = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    arrays["scheduler_step"] = np.array([row["scheduler"] is not None for row in rows])
    return arrays


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _check_row(row: Any, first: Mapping[str, Any], place: str) -> None:
    missing = [name for name in COLUMNS if name not in row] if isinstance(row, dict) else list(COLUMNS)
    if missing:
        raise ValueError(f"{place} is no row of a scheduler history: it lacks {missing}. Remove or repair that line.")
    if row["tasks"] != first["tasks"]:
        raise ValueError(f"{place} has the tasks {row['tasks']}, the rows before it {first['tasks']}: split the file.")
    count = len(row["tasks"])
    for name in (*PER_TASK, *BETWEEN_TASKS):
        vectors = [row[name]] if name in PER_TASK else [row[name], *row[name]]
        if any(not isinstance(vector, list) or len(vector) != count for vector in vectors):
            raise ValueError(f"{place}: `{name}` is {row[name]}, not of {count} tasks. Remove or repair that line.")


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> Any:
    """Python floats, nested as `shape` tells, with None for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"`{name}` has shape {array.shape}: pass {shape} (the history's tasks decide).")
    return _finite_or_none(array.tolist())


def _finite_or_none(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite_or_none(value) for value in values]
    return values if math.isfinite(values) else None


def _scheduler_columns(scheduler: Mapping[str, float]) -> dict[str, float | int | None]:
    if set(scheduler) != set(SCHEDULER_COLUMNS):
        raise ValueError(f"`scheduler` has the keys {sorted(scheduler)}: pass {list(SCHEDULER_COLUMNS)}, or None.")
    columns: dict[str, float | int | None] = {
        name: _numbers(name, scheduler[name], ()) for name in SCHEDULER_COLUMNS[:-1]
    }
    columns["neumann_terms"] = int(scheduler["neumann_terms"])
    return columns
