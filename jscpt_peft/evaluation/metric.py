"""The accuracies as a metric of the library `evaluate`, for whoever collects predictions with it.

Nothing else of the package needs that library, so nothing else imports this file: `import evaluate` would find
`recipes/evaluate.py` in a program that is started from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from .accuracy import distinct_names, integers, multi_task_accuracy


class MultiTaskAccuracy(evaluate.Metric):
    """[`multi_task_accuracy`] as an `evaluate.Metric` that needs no download: add batches, then compute.

    Args:
        task_names: [N] distinct names; `task_ids` are positions in this list.
        keep_in_memory: nothing is written to disk and instances never wait for each other's lock. Pass False for
            evaluate's own way of collecting from several processes (with `num_process`, `process_id`, `cache_dir`).
        **metric_arguments: the other arguments of `evaluate.Metric`.

    Example:
        >>> accuracy = MultiTaskAccuracy(["art", "sketch"])
        >>> accuracy.add_batch(predictions=[0, 1], references=[0, 1], task_ids=[0, 0])
        >>> accuracy.add_batch(predictions=[1], references=[0], task_ids=[1])
        >>> accuracy.compute()["mean_accuracy"]
        0.5
    """

    def __init__(self, task_names: Sequence[str], keep_in_memory: bool = True, **metric_arguments: Any) -> None:
        self.task_names = distinct_names(task_names)
        super().__init__(keep_in_memory=keep_in_memory, **metric_arguments)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy per task, its mean over tasks, the worst task and the worst (task, group) pair.",
            citation="",
            inputs_description="\npredictions, references, task_ids and optionally groups: one integer per sample.",
            features=datasets.Features(
                {name: datasets.Value("int64") for name in ("predictions", "references", "task_ids", "groups")}
            ),
        )

    def _build_data_dir(self) -> str:
        # evaluate would leave an empty folder in the user's cache (or fail where that is read-only) for files that
        # are never written.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def add_batch(self, *, predictions, references, task_ids, groups=None) -> None:
        """Adds samples: integer columns [S] (lists, arrays or CPU tensors); `groups` in all batches or in none."""
        predictions = integers("predictions", predictions)
        super().add_batch(
            predictions=predictions,
            references=integers("references", references, length=len(predictions)),
            task_ids=integers("task_ids", task_ids, length=len(predictions)),
            groups=[None] * len(predictions) if groups is None else integers("groups", groups, len(predictions)),
        )

    def add(self, *, prediction, reference, task_ids, groups=None) -> None:
        """Adds one sample: integers."""
        group = None if groups is None else [groups]
        self.add_batch(predictions=[prediction], references=[reference], task_ids=[task_ids], groups=group)

    def compute(self, *, predictions=None, references=None, task_ids=None, groups=None) -> dict[str, float] | None:
        """Scores what was added and the columns given here, as [`multi_task_accuracy`] does, and starts afresh."""
        if self.writer is None and predictions is None:
            raise ValueError("`predictions` is empty: there is nothing to score; call `add_batch` before `compute`.")
        return super().compute(predictions=predictions, references=references, task_ids=task_ids, groups=groups)

    def _compute(self, predictions, references, task_ids, groups) -> dict[str, float]:
        known = [group is not None for group in groups]
        if any(known) and not all(known):
            raise ValueError(
                f"`groups` was given for {sum(known)} of {len(known)} samples: give it in every batch or in none."
            )
        return multi_task_accuracy(predictions, references, task_ids, self.task_names, groups if any(known) else None)
