"""The scheduler's history: one JSON object a line for every step, a plain table for pandas and datasets."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from .history_table import SCHEDULER_COLUMNS, SCHEDULER_COUNTS, history_lines


class SchedulerHistory:
    """Writes the history, one row a step, each on disk as soon as it is appended. For one process only.

    Every row holds the same keys with the same types, so that `pandas.read_json(path, lines=True)` and
    `datasets.load_dataset("json", data_files=path)` read the file as a table. What is not finite (an absent task's
    loss) is written as null, for JSON knows no nan.

    Args:
        path: the file, by convention `scheduler_history.jsonl` in the run's output directory.
        tasks: [N] names in task order.
        resume_step: keep the rows of an existing file up to and including this step, the one of the checkpoint that
            training resumes from, and drop what was written after it, whatever that is. 0 starts a new history.

    Attributes:
        nonfinite_steps: [N], in how many of the file's rows each task was `nonfinite`.

    Raises:
        ValueError: the rows kept are damaged or belong to other tasks; the file is then as it was.
        OSError: the disk is full or the like; likewise.

    Example:
        >>> with SchedulerHistory("scheduler_history.jsonl", ["art", "sketch"]) as history:
        ...     history.append(step=1, epoch=0.1, loss=[1.5, 2.0], ...)
    """

    def __init__(self, path: str | os.PathLike, tasks: Sequence[str], resume_step: int = 0) -> None:
        self.path = Path(path)
        self.tasks = list(tasks)
        self.nonfinite_steps = [0] * len(self.tasks)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Through a second file, so that a crash here cannot lose the rows of hours.
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with fresh.open("wb") as file:
                if resume_step > 0 and self.path.exists():
                    self._keep(file, resume_step)
            fresh.replace(self.path)
        finally:
            fresh.unlink(missing_ok=True)
        self._file = self.path.open("a", encoding="utf-8")

    def _keep(self, file: BinaryIO, resume_step: int) -> None:
        """Copies and counts the rows up to a step; reads no further, so that damage in what is dropped is none."""
        for line, row in history_lines(self.path):
            if row["step"] > resume_step:
                return
            if row["tasks"] != self.tasks:
                raise ValueError(
                    f"`tasks` is {self.tasks}, but {self.path} was written for {row['tasks']}: "
                    f"resume with the tasks of that run, or write to another file."
                )
            file.write(line.rstrip(b"\r\n") + b"\n")  # a last line may lack its break
            self._count(row["nonfinite"])
            if row["step"] == resume_step:
                return

    def _count(self, nonfinite: Sequence[bool]) -> None:
        self.nonfinite_steps = [before + now for before, now in zip(self.nonfinite_steps, nonfinite, strict=True)]

    def append(
        self,
        *,
        step: int,
        epoch: float,
        loss: Sequence[float],
        causal_effect: Sequence[float],
        alpha: Sequence[float],
        beta: Sequence[float],
        prompt_factor: Sequence[float],
        task_factor: Sequence[float],
        weight: Sequence[float],
        alpha_after: Sequence[float],
        beta_after: Sequence[float],
        nonfinite: Sequence[bool],
        affinity: Sequence[Sequence[float]],
        gradient_cosine: Sequence[Sequence[float]],
        gradient_norm: float,
        scheduler: Mapping[str, float] | None = None,
    ) -> None:
        """Append one row and flush it.

        A row explains its own weights: `weight` is `prompt_factor · task_factor`, normalised where the run normalises,
        and these come from the row's `causal_effect`, `affinity`, `alpha` and `beta`. What the step then made of Ω
        stands in `alpha_after` and `beta_after`, which are the next row's `alpha` and `beta`.

        Args:
            step: optimizer steps taken, from 1.
            epoch: the same in passes over the largest task; the first is over at 1.0.
            loss: [N] task losses (Eq. 3), nan for an absent task.
            causal_effect: [N] Δ (Eq. 4).
            alpha: [N] α, as it was when the step's weights were computed (Eq. 6).
            beta: [N] β, likewise.
            prompt_factor: [N] first factor of Eq. 6, σ(α_i Δ_i); 1 without prompt scheduling. nan where the task is
                absent or `nonfinite`.
            task_factor: [N] second factor of Eq. 6, σ(β_i a_i) or what a gradient aggregator gives in its place; 1
                without task scheduling. nan likewise.
            weight: [N] φ (Eq. 6), with which the step was taken; 0 for a task that is absent or `nonfinite`.
            alpha_after: [N] α after the step; another than `alpha` only where the step updated Ω.
            beta_after: [N] β after the step.
            nonfinite: [N] of bool, tasks whose loss or gradient was not finite, so that they got weight 0.
            affinity: [N, N] A (Eq. 5), row = source, column = target, zero diagonal; nan in the row and column of a
                task without a weight.
            gradient_cosine: [N, N] cosine of the tasks' gradients with respect to the shared prompts, nan likewise.
            gradient_norm: norm of the step's gradient (Eq. 9).
            scheduler: where the step updated Ω (Eq. 11): `step_size` and `neumann_terms` of the Neumann series,
                `hypergradient_norm`, `dev_loss`, and `graph_bytes`, the memory kept for the Hessian-vector products.
                None elsewhere.

        Lists, arrays and CPU tensors without gradient are accepted.

        Raises:
            ValueError: a value of another shape, `nonfinite` that is not bool, or other keys in `scheduler`.
        """
        count = len(self.tasks)
        row: dict[str, Any] = {"tasks": self.tasks, "step": int(step), "epoch": _numbers("epoch", epoch, ())}
        vectors = {
            "loss": loss,
            "causal_effect": causal_effect,
            "alpha": alpha,
            "beta": beta,
            "prompt_factor": prompt_factor,
            "task_factor": task_factor,
            "weight": weight,
            "alpha_after": alpha_after,
            "beta_after": beta_after,
        }
        for name, values in vectors.items():
            row[name] = _numbers(name, values, (count,))
        row["nonfinite"] = _booleans("nonfinite", nonfinite, (count,))
        for name, values in {"affinity": affinity, "gradient_cosine": gradient_cosine}.items():
            row[name] = _numbers(name, values, (count, count))
        row["gradient_norm"] = _numbers("gradient_norm", gradient_norm, ())
        row["scheduler"] = None if scheduler is None else _scheduler_columns(scheduler)
        self._file.write(_line(row))
        self._file.flush()
        self._count(row["nonfinite"])

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SchedulerHistory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> Any:
    """Python floats, nested as `shape` tells, with None for what is not finite."""
    array = _of_shape(name, np.asarray(values, dtype=np.float64), shape)
    return _finite_or_none(array.tolist())


def _booleans(name: str, values: Any, shape: tuple[int, ...]) -> list[bool]:
    array = _of_shape(name, np.asarray(values), shape)
    if array.dtype != bool:
        raise ValueError(f"`{name}` is {array.tolist()}: pass booleans.")
    return array.tolist()


def _of_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"`{name}` has shape {array.shape}: pass {shape} (the history's tasks decide).")
    return array


def _finite_or_none(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite_or_none(value) for value in values]
    return values if math.isfinite(values) else None


def _scheduler_columns(scheduler: Mapping[str, float]) -> dict[str, float | int | None]:
    if set(scheduler) != set(SCHEDULER_COLUMNS):
        raise ValueError(f"`scheduler` has the keys {sorted(scheduler)}: pass {list(SCHEDULER_COLUMNS)}, or None.")
    return {
        name: int(scheduler[name]) if name in SCHEDULER_COUNTS else _numbers(name, scheduler[name], ())
        for name in SCHEDULER_COLUMNS
    }
