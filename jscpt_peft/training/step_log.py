"""What Algorithm 1 did at each step: averages for the logs, every step for the scheduler's history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from jscpt_peft.evaluation import SchedulerHistory, read_history

logger = logging.get_logger(__name__)

HISTORY_FILE = "scheduler_history.jsonl"


class StepLog:
    """Keeps steps as tensors until they are asked for: logs average them, the history holds each.

    Args:
        task_names: [N] names.
        path: the history file; `None` writes none (processes other than the first).
    """

    def __init__(self, task_names: list[str], path: Path | None) -> None:
        self.task_names = task_names
        self._rows: list[dict[str, Any]] = []  # since the last log
        self._unwritten: list[dict[str, Any]] = []
        self._history = None if path is None else SchedulerHistory(path, task_names)
        self._nonfinite_steps: Tensor | None = None  # [N], of the whole history

    def append(self, row: dict[str, Any]) -> None:
        """Remembers an optimizer step: a row of the history, whose tensors stay where they are for now."""
        self._rows.append(row)
        if self._history is not None:
            self._unwritten.append(row)

    def drain(self) -> dict[str, float]:
        """Logs of the steps since the last call, which are written to the history if they are not yet.

        `loss/<task>`, `weight/<task>` and what the weighting logs per task, such as `causal_effect/<task>`, are means
        over these steps; so is `affinity/<task>`, the mean over the other tasks as sources. What Ω stands for, such as
        `alpha/<task>`, and `scheduler/*` are the latest. A task that was absent in all of them is left out.
        `nonfinite_steps/<task>` counts all steps of the history in which the task was not finite, where there are any.
        """
        self.flush()
        rows, self._rows = self._rows, []
        if not rows:
            return {}
        learned = [name for name in rows[-1] if f"{name}_after" in rows[-1]]
        unlogged = {"nonfinite", "prompt_factor", "task_factor", *learned, *(f"{name}_after" for name in learned)}
        series = {
            name: torch.stack([row[name] for row in rows]).float().cpu()
            for name, value in rows[-1].items()
            if isinstance(value, Tensor) and value.dim() > 0 and name not in unlogged
        }
        nonfinite = torch.stack([row["nonfinite"] for row in rows]).cpu()
        present = (nonfinite | ~series["loss"].isnan()).any(0).tolist()
        itself = torch.eye(len(self.task_names), dtype=torch.bool)
        matrices = {name: series.pop(name) for name in list(series) if series[name].dim() == 3}
        if "affinity" in matrices and sum(present) > 1:
            series["affinity"] = matrices["affinity"].masked_fill(itself, torch.nan).nanmean(1)
        values = {name: each.nanmean(0) for name, each in series.items()}
        values |= {name: rows[-1][f"{name}_after"] for name in learned}
        logs = {
            f"{name}/{task}": float(value)
            for name, each in values.items()
            for task, value, here in zip(self.task_names, each, present, strict=True)
            if here
        }
        updates = [row["scheduler"] for row in rows if row["scheduler"] is not None]
        logs |= {f"scheduler/{name}": value for name, value in (updates[-1] if updates else {}).items()}
        counts = [] if self._nonfinite_steps is None else self._nonfinite_steps.tolist()
        named = zip(self.task_names, counts, strict=False)
        logs |= {f"nonfinite_steps/{task}": count for task, count in named if count > 0}
        return logs

    def flush(self) -> None:
        """Writes the steps since the last call to the history; what a full disk refuses is written next time."""
        try:
            if self._unwritten and self._nonfinite_steps is None:
                self._nonfinite_steps = self._count_nonfinite(before=self._unwritten[0]["step"])
            while self._unwritten:
                row = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in self._unwritten[0].items()}
                self._history.append(row)
                self._nonfinite_steps += row["nonfinite"]
                del self._unwritten[0]
        except OSError as error:
            path = self._history.path
            logger.error(f"{path} could not be written ({error}); its rows are kept in memory until it can be.")

    def _count_nonfinite(self, before: int) -> Tensor:
        """Steps `[N]` in which each task was not finite, in the part of the history that the run goes on with."""
        path, counts = self._history.path, torch.zeros(len(self.task_names), dtype=torch.int64)
        for row in read_history(path, columns=["nonfinite"]) if before > 1 and path.exists() else ():
            if row["step"] < before and row["tasks"] == self.task_names:
                counts += torch.tensor([each is True for each in row.get("nonfinite") or counts])
        return counts
