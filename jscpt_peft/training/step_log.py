"""What Algorithm 1 did at each step: averages for the logs, every step for the scheduler's history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jscpt_peft.evaluation import SchedulerHistory
from jscpt_peft.scheduling import TaskPromptScheduler

from .schedule import Schedule
from .task_gradients import TaskMeans
from .upper_level import UpperStep

HISTORY_FILE = "scheduler_history.jsonl"


class StepLog:
    """Keeps steps as tensors until they are asked for: logs average them, the history holds each.

    Args:
        task_names: [N] names.
        path: the history file; `None` writes none (processes other than the first).
    """

    def __init__(self, task_names: list[str], path: Path | None) -> None:
        self.task_names = task_names
        self.path = path
        self._rows: list[dict[str, Any]] = []  # since the last log
        self._unwritten: list[dict[str, Any]] = []
        self._history: SchedulerHistory | None = None

    def append(
        self,
        number: int,
        epoch: float,
        step: TaskMeans,
        schedule: Schedule,
        scheduler: TaskPromptScheduler,
        gradients: tuple[Tensor, ...],
        upper: UpperStep | None,
    ) -> None:
        """Remembers optimizer step `number` (from 1), with Ω as it is after it."""
        row = {
            "step": number,
            "epoch": epoch,
            "loss": step.losses,
            "causal_effect": schedule.effect,
            "weight": schedule.weights.detach(),
            "alpha": scheduler.alpha.detach().clone(),
            "beta": scheduler.beta.detach().clone(),
            "affinity": schedule.affinity,
            "gradient_cosine": schedule.cosine,
            "gradient_norm": torch.stack([gradient.norm() for gradient in gradients]).norm(),
            "scheduler": None if upper is None else upper.logs(),
        }
        self._rows.append(row)
        self._unwritten.append(row)

    def drain(self) -> dict[str, float]:
        """Logs of the steps since the last call.

        `loss/<task>`, `causal_effect/<task>`, `weight/<task>` and `affinity/<task>` (mean over its sources) are
        means over these steps; `alpha/<task>`, `beta/<task>` and `scheduler/*` are the latest.
        """
        rows, self._rows = self._rows, []
        if not rows:
            return {}
        names = ("loss", "causal_effect", "weight", "affinity")
        series = {name: torch.stack([row[name] for row in rows]).float().cpu() for name in names}
        series["affinity"] = series["affinity"].sum(1) / max(len(self.task_names) - 1, 1)
        values = {name: each.nanmean(0) for name, each in series.items()}
        values |= {name: rows[-1][name] for name in ("alpha", "beta")}
        logs = {
            f"{name}/{task}": float(value)
            for name, each in values.items()
            for task, value in zip(self.task_names, each, strict=True)
        }
        updates = [row["scheduler"] for row in rows if row["scheduler"] is not None]
        logs |= {f"scheduler/{name}": value for name, value in (updates[-1] if updates else {}).items()}
        return logs

    def flush(self) -> None:
        """Writes the steps since the last call to the history."""
        rows, self._unwritten = self._unwritten, []
        if self.path is None or not rows:
            return
        if self._history is None:
            self._history = SchedulerHistory(self.path, self.task_names, resume_step=rows[0]["step"] - 1)
        for row in rows:
            self._history.append(**{n: v.cpu() if isinstance(v, Tensor) else v for n, v in row.items()})
