"""The scheduler's history: a file with one JSON object per optimizer step, which is only ever appended to."""

from __future__ import annotations

import json
import os
import warnings
from bisect import bisect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MOST_TASKS_WITH_PAIRS = 32
BETWEEN_TASKS = ("affinity", "gradient_cosine")


class SchedulerHistory:
    """Appends rows to a history file. For one process only.

    A run that goes on from a checkpoint appends what follows it once more, and [`read_history`] takes the later rows:
    nothing on disk is rewritten, so nothing can be lost. Only the row of step 1 starts the file anew.

    Args:
        path: the file, by convention `scheduler_history.jsonl` in the run's output directory; made with its folder.
        task_names: [N] in task order.

    Example:
        >>> history = SchedulerHistory("scheduler_history.jsonl", ["art", "sketch"])
        >>> history.append({"step": 1, "epoch": 0.1, "loss": [1.5, 2.0], "weight": [1.0, 1.0]})
    """

    def __init__(self, path: str | os.PathLike, task_names: Sequence[str]) -> None:
        self.path = Path(path)
        self.task_names = list(task_names)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row and closes the file.

        With more than 32 tasks, `affinity` and `gradient_cosine` are left out for `affinity_mean` and
        `gradient_cosine_mean` (see [`mean_of_others`]), so that a row's size is linear in the number of tasks.

        Args:
            row: `step`, an integer from 1, and any other columns. A value is a number or bool, `[N]` of them (per
                task), `[N, N]` (per pair of tasks), a mapping of such values, or None. Lists, arrays and CPU tensors
                without gradient will do. Numbers that are not finite are written as null, since JSON has no nan.

        Raises:
            ValueError: a value has another shape; nothing is written.
            OSError: the disk is full, for example. What was written of the row is passed over by [`read_history`].
        """
        count = len(self.task_names)
        plain = {"tasks": self.task_names}
        for name, value in row.items():
            if name in BETWEEN_TASKS and count > MOST_TASKS_WITH_PAIRS:
                name, value = f"{name}_mean", mean_of_others(value)
            plain[name] = _plain(name, value, count)
        line = json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb" if plain["step"] == 1 else "ab+") as file:
            file.write(line if _at_line_start(file) else b"\n" + line)


def read_history(path: str | os.PathLike, columns: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a history file, one per step, in order. `pandas.DataFrame(rows)` makes a table of them.

    Where a run went back to a checkpoint, the rows that it wrote before and after that step are replaced by the new
    ones. A line that broke off when a run was killed is ignored. Other damaged lines, and rows of other tasks than the
    last row's, are left out.

    Args:
        path: of the file.
        columns: which to keep besides `tasks` and `step`; all if None. Saves memory with long histories.

    Warns:
        UserWarning: lines are left out that nothing replaces. It names the file and the first of them.

    Raises:
        FileNotFoundError: no such file.
    """
    rows: dict[int, dict[str, Any]] = {}  # by line number
    left_out, torn = [], None
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = _parse(line)
            if row is None:
                left_out.append(number)
                torn = None if line.endswith(b"\n") else number
            else:
                rows[number] = {key: row[key] for key in row if columns is None or key in ("tasks", "step", *columns)}
    tasks = rows[max(rows)]["tasks"] if rows else []
    numbers: list[int] = []  # of the lines kept, last first
    for number, row in reversed(rows.items()):
        if row["tasks"] != tasks:
            left_out.append(number)
        elif not numbers or row["step"] < rows[numbers[-1]]["step"]:
            numbers.append(number)
    numbers.reverse()
    steps = [0, *(rows[number]["step"] for number in numbers)]
    for number in sorted(left_out):
        place = bisect(numbers, number)  # the line lies between the steps at `place` and `place + 1`
        replaced = steps[place + 1] == steps[place] + 1 if place < len(numbers) else number == torn
        if not replaced:
            warnings.warn(
                f"{path}: line {number} is not a row of this history, and is left out with what it held.", stacklevel=2
            )
            break
    return [rows[number] for number in numbers]


def history_arrays(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The columns that all of T rows have, stacked: `[T]`, `[T, N]` and `[T, N, N]` of float64, null as nan.

    `nonfinite` is bool. Added are `scheduler_step`, `[T]` of bool, whether the step updated Ω, and [`mean_of_others`]
    of the columns between tasks as `affinity_mean` and `gradient_cosine_mean`.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("`rows` is empty: the history holds no step yet.")
    names = [name for name in rows[0] if name not in ("tasks", "scheduler") and all(name in row for row in rows)]
    arrays = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    if "nonfinite" in arrays:
        arrays["nonfinite"] = arrays["nonfinite"] == 1
    arrays["scheduler_step"] = np.array([row.get("scheduler") is not None for row in rows])
    means = {f"{name}_mean": mean_of_others(arrays[name]) for name in BETWEEN_TASKS if name in arrays}
    return arrays | means


def mean_of_others(values: Any) -> np.ndarray:
    """Of `[..., N, N]` values, row = source and column = target, the mean over each target's other tasks `[..., N]`.

    Without nan; nan where nothing else is left.
    """
    values = np.asarray(values, dtype=np.float64)
    return nanmean(np.where(np.eye(values.shape[-1], dtype=bool), np.nan, values), axis=-2)


def nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """`np.nanmean` without its warning where all values are nan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _plain(name: str, value: Any, count: int) -> Any:
    """As JSON can hold it."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: _plain(f"{name}.{key}", each, count) for key, each in value.items()}
    array = np.asarray(value)
    if array.shape not in ((), (count,), (count, count)):
        raise ValueError(
            f"`{name}` has shape {array.shape}: pass a single value, ({count},) or ({count}, {count}), since the "
            f"history has {count} tasks."
        )
    return (np.where(np.isfinite(array), array, None) if array.dtype.kind == "f" else array).tolist()


def _at_line_start(file: BinaryIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row that a line holds, if it holds one."""
    try:
        row = json.loads(line)
        if not (isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("tasks"), list)):
            return None
        values = (value for name, value in row.items() if name != "tasks")
        return row if all(_fits(value, len(row["tasks"])) for value in values) else None
    except (ValueError, RecursionError):
        return None


def _fits(value: Any, count: int) -> bool:
    if isinstance(value, list):
        return len(value) == count and all(_fits(each, count) for each in value)
    if isinstance(value, dict):
        return all(_fits(each, count) for each in value.values())
    return value is None or isinstance(value, bool | int | float)
