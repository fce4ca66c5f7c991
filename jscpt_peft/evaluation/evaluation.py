"""What a model's predictions on test images amount to: by task, by group, under corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .accuracy import multi_task_accuracy
from .calibration import Reliability, reliability
from .confusion import confusion_matrix, macro_f1

CHUNK = 4096
METRICS = ["accuracy", "macro_f1", "expected_calibration_error"]


@dataclass(frozen=True)
class Predictions:
    """What a model predicted on S test images of N tasks.

    Attributes:
        predictions: `[S]` predicted class indices.
        confidences: `[S]` their probabilities.
        references: `[S]` true class indices.
        task_ids: `[S]` positions of the images' tasks.
        groups: `[S]` groups within the tasks, where these are known.
    """

    predictions: np.ndarray
    confidences: np.ndarray
    references: np.ndarray
    task_ids: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def from_logits(
        cls, logits: np.ndarray, references: np.ndarray, task_ids: np.ndarray, groups: np.ndarray | None = None
    ) -> Predictions:
        """From logits `[S, C]` that are -inf beyond the classes of a sample's task.

        Raises:
            ValueError: a sample's logits are not finite.
        """
        highest, confidences = np.empty(len(logits)), np.empty(len(logits))
        for start in range(0, len(logits), CHUNK):  # float64 copies of some rows only
            rows = np.asarray(logits[start : start + CHUNK], dtype=np.float64)
            highest[start : start + CHUNK] = top = rows.max(axis=1)
            with np.errstate(invalid="ignore"):  # of rows that are refused below
                confidences[start : start + CHUNK] = 1 / np.exp(rows - top[:, None]).sum(axis=1)  # softmax of the top
        broken = np.flatnonzero(~np.isfinite(highest))
        if len(broken) > 0:
            raise ValueError(
                f"the logits of {len(broken)} of {len(logits)} images are not finite (the first is image {broken[0]} "
                f"of task number {task_ids[broken[0]]}): the weights of the adapter or of its base model are damaged."
            )
        return cls(logits.argmax(axis=1), confidences, references, task_ids, groups)

    def accuracies(self, task_names: Sequence[str]) -> dict[str, float]:
        """As [`multi_task_accuracy`] returns them."""
        return multi_task_accuracy(self.predictions, self.references, self.task_ids, task_names, self.groups)

    def chosen(self, samples: np.ndarray) -> Predictions:
        """Those of some samples, given by their positions or a mask."""
        columns = vars(self).items()
        return Predictions(**{name: None if column is None else column[samples] for name, column in columns})


@dataclass(frozen=True)
class Robustness:
    """Accuracies under corruptions, and on the same images without.

    Attributes:
        images_per_task: the most images per task that were used.
        clean: `[N]` accuracies on the images as they are, by task.
        accuracies: a row per (corruption, severity), a column per task: `DataFrame({(c, s): [...]}, index=tasks).T`.
    """

    images_per_task: int
    clean: pd.Series
    accuracies: pd.DataFrame

    @property
    def means(self) -> pd.DataFrame:
        """Means over tasks, each counting the same: one row per corruption, one column per severity."""
        return self.accuracies.mean(axis=1).unstack(sort=False)


@dataclass(frozen=True)
class Evaluation:
    """What [`evaluate_predictions`] found. Metrics are fractions in [0, 1], nan without images.

    Attributes:
        evaluated_model: which model, and how its images were chosen: `{"method": ..., "adapter": ..., ...}`.
        task_set: the task set's name.
        class_names: of each task.
        tasks: one row per task: `images`, `accuracy`, `macro_f1` and `expected_calibration_error`.
        groups: one row per (task, group) with images: `task`, `group`, `accuracy`, `images`. Empty where the data know
            no groups.
        confusions: `[C, C]` images of each task, row the true class, column the predicted one.
        reliabilities: confidence against accuracy, of each task.
        robustness: None where no corruption was asked for.
    """

    evaluated_model: Mapping[str, str | int | None]
    task_set: str
    class_names: Mapping[str, Sequence[str]]
    tasks: pd.DataFrame
    groups: pd.DataFrame
    confusions: Mapping[str, np.ndarray]
    reliabilities: Mapping[str, Reliability]
    robustness: Robustness | None = None

    @property
    def means(self) -> pd.Series:
        """The metrics' means over tasks, each counting the same."""
        return self.tasks[METRICS].mean()

    @property
    def worst_task(self) -> str:
        """The task with the lowest accuracy (the first of several)."""
        return self.tasks["accuracy"].idxmin()

    @property
    def worst_group(self) -> dict[str, str | int | float] | None:
        """The row of `groups` with the lowest accuracy."""
        return min(self.groups.to_dict("records"), key=lambda row: row["accuracy"], default=None)


def evaluate_predictions(
    predictions: Predictions,
    class_names: Mapping[str, Sequence[str]],
    evaluated_model: Mapping[str, str | int | None],
    task_set: str,
    robustness: Robustness | None = None,
) -> Evaluation:
    """All metrics of one evaluation.

    Args:
        predictions: on the test images of all tasks.
        class_names: task name -> class names, in the order of task ids.
        evaluated_model, task_set, robustness: as in [`Evaluation`].

    Raises:
        ValueError: no images, or indices that do not fit `class_names`.
    """
    accuracies = predictions.accuracies(list(class_names))
    tasks, groups, confusions, reliabilities = {}, [], {}, {}
    for task_id, (name, classes) in enumerate(class_names.items()):
        own = predictions.chosen(predictions.task_ids == task_id)
        correct = own.predictions == own.references
        confusions[name] = confusion_matrix(own.predictions, own.references, len(classes))
        reliabilities[name] = reliability(own.confidences, correct)
        tasks[name] = {
            "images": len(correct),
            "accuracy": accuracies[f"accuracy/{name}"],
            "macro_f1": macro_f1(confusions[name]),
            "expected_calibration_error": reliabilities[name].expected_calibration_error,
        }
        for group in [] if own.groups is None else np.unique(own.groups):
            members = correct[own.groups == group]
            groups.append({"task": name, "group": int(group), "accuracy": members.mean(), "images": len(members)})
    return Evaluation(
        evaluated_model,
        task_set,
        class_names,
        pd.DataFrame.from_dict(tasks, orient="index"),
        pd.DataFrame(groups, columns=["task", "group", "accuracy", "images"]),
        confusions,
        reliabilities,
        robustness,
    )
