"""All figures of one evaluation, apart from how they are shown: by task, by group, under corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .accuracy import multi_task_accuracy, worst_task
from .calibration import Reliability, reliability
from .confusion import confusion_matrix, macro_f1

CHUNK = 4096


@dataclass(frozen=True)
class Answers:
    """What a model answered on S test images of N tasks.

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
    ) -> Answers:
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

    def chosen(self, samples: np.ndarray) -> Answers:
        """Those of some samples, given by their positions or a mask."""
        groups = None if self.groups is None else self.groups[samples]
        return Answers(
            self.predictions[samples],
            self.confidences[samples],
            self.references[samples],
            self.task_ids[samples],
            groups,
        )


@dataclass(frozen=True)
class TaskEvaluation:
    """One task's figures, fractions in [0, 1], nan without images.

    Attributes:
        name: the task.
        class_names: its C classes.
        accuracy: part of the images that is right.
        macro_f1: mean of the classes' F1 scores (see [`macro_f1`]).
        reliability: confidence against accuracy.
        confusion: `[C, C]` images, row the true class, column the predicted one.
    """

    name: str
    class_names: tuple[str, ...]
    accuracy: float
    macro_f1: float
    reliability: Reliability
    confusion: np.ndarray

    @property
    def num_images(self) -> int:
        return int(self.confusion.sum())

    @property
    def expected_calibration_error(self) -> float:
        return self.reliability.expected_calibration_error


@dataclass(frozen=True)
class GroupEvaluation:
    """Accuracy of one group of a task."""

    task: str
    group: int
    accuracy: float
    num_images: int


@dataclass(frozen=True)
class Robustness:
    """Accuracies under corruptions, and on the same images without.

    Attributes:
        images_per_task: the most images of a task that were used.
        task_names: N names.
        corruptions: K names.
        severities: S of them.
        clean: `[N]` accuracies on the images as they are.
        accuracies: `[K, S, N]`.
    """

    images_per_task: int
    task_names: tuple[str, ...]
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    clean: np.ndarray
    accuracies: np.ndarray

    @property
    def clean_mean(self) -> float:
        """Mean over tasks, each counting the same."""
        return float(np.nanmean(self.clean))

    @property
    def means(self) -> np.ndarray:
        """`[K, S]`, likewise."""
        return np.nanmean(self.accuracies, axis=2)


@dataclass(frozen=True)
class Evaluation:
    """What [`evaluate_answers`] found.

    Attributes:
        subject: what was evaluated, in words or names: `{"method": ..., "adapter": ..., ...}`.
        task_set: the task set's name.
        tasks: one entry a task.
        groups: one entry a (task, group) pair with images; empty where the data know no groups.
        robustness: None where no corruption was asked for.
    """

    subject: Mapping[str, str | int | None]
    task_set: str
    tasks: tuple[TaskEvaluation, ...]
    groups: tuple[GroupEvaluation, ...] = ()
    robustness: Robustness | None = None

    @property
    def worst_task(self) -> TaskEvaluation:
        """The task with the lowest accuracy (the first of several)."""
        name, _ = worst_task({f"accuracy/{task.name}": task.accuracy for task in self.tasks}, self.task_names)
        return self.tasks[self.task_names.index(name)]

    @property
    def worst_group(self) -> GroupEvaluation | None:
        """The group with the lowest accuracy of all tasks' groups."""
        return min(self.groups, key=lambda each: each.accuracy, default=None)

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @property
    def mean_accuracy(self) -> float:
        return float(np.nanmean([task.accuracy for task in self.tasks]))

    @property
    def mean_macro_f1(self) -> float:
        return float(np.nanmean([task.macro_f1 for task in self.tasks]))

    @property
    def mean_expected_calibration_error(self) -> float:
        return float(np.nanmean([task.expected_calibration_error for task in self.tasks]))


def evaluate_answers(
    answers: Answers,
    class_names: Mapping[str, Sequence[str]],
    subject: Mapping[str, str | int | None],
    task_set: str,
    robustness: Robustness | None = None,
) -> Evaluation:
    """All figures of one evaluation.

    Args:
        answers: on the test images of all tasks.
        class_names: task name -> class names, in the order of task ids.
        subject, task_set, robustness: as in [`Evaluation`].

    Raises:
        ValueError: no images, or indices that do not fit `class_names`.
    """
    accuracies = answers.accuracies(list(class_names))
    tasks, groups = [], []
    for task_id, (name, classes) in enumerate(class_names.items()):
        own = answers.chosen(answers.task_ids == task_id)
        correct = own.predictions == own.references
        matrix = confusion_matrix(own.predictions, own.references, len(classes))
        tasks.append(
            TaskEvaluation(
                name=name,
                class_names=tuple(classes),
                accuracy=accuracies[f"accuracy/{name}"],
                macro_f1=macro_f1(matrix),
                reliability=reliability(own.confidences, correct),
                confusion=matrix,
            )
        )
        for group in [] if own.groups is None else np.unique(own.groups):
            members = correct[own.groups == group]
            groups.append(GroupEvaluation(name, int(group), float(members.mean()), len(members)))
    return Evaluation(subject, task_set, tuple(tasks), tuple(groups), robustness)
