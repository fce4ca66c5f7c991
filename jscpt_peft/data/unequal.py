"""Tasks of unequal quality, made on purpose: few training images in some of them, or wrong labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import datasets

from jscpt_peft.choices import nearest
from jscpt_peft.data.splits import ranked
from jscpt_peft.data.task import Task, TaskSet, changed_rows, read_column


def with_shots(task_set: TaskSet, shots: Mapping[str, int], seed: int) -> TaskSet:
    """The task set with so many training images per class in some tasks, and as many as before in the others.

    Args:
        shots: task -> training images per class (all, where there are fewer).
        seed: of the choice, which is that of `load_task_set(shots=...)`: 2 shots are among 4.

    Raises:
        ValueError: there is no such task.
    """

    def fewer(task: Task) -> datasets.Dataset:
        of_class: dict[int, list[str]] = {}
        keys = read_column(task.train, "key")
        for key, label in zip(keys, read_column(task.train, "label"), strict=True):
            of_class.setdefault(label, []).append(key)
        kept = {key for each in of_class.values() for key in ranked(each, seed, task.name)[: shots[task.name]]}
        return changed_rows(task.train, [row for row, key in enumerate(keys) if key in kept])

    return _with_training(task_set, "shots", shots, fewer)


def with_label_noise(task_set: TaskSet, noise: Mapping[str, float], seed: int) -> TaskSet:
    """The task set with wrong training labels in some tasks; validation, D_dev and test images keep theirs.

    A wrong label is any of the task's other classes, each as likely. Which image gets which is a pure function of
    (seed, task, key): the images that are wrong at 0.2 are so at 0.7.

    Args:
        noise: task -> probability of a wrong label, in [0, 1].
        seed: of the noise.

    Raises:
        ValueError: there is no such task, a probability is out of its range, or a task has one class.
    """
    for task, probability in noise.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"`label_noise` of {task!r} is {probability}: it must lie in [0, 1].")

    def wrong(task: Task) -> datasets.Dataset:
        classes, labels = len(task.class_names), read_column(task.train, "label")
        if classes < 2:
            raise ValueError(f"`label_noise` names {task.name!r}, which has one class: there is no wrong label.")
        for row, key in enumerate(read_column(task.train, "key")):
            digest = hashlib.sha256(f"{seed}/{task.name}/{key}/label".encode()).digest()
            chance, other = (int.from_bytes(part, "big") for part in (digest[:8], digest[8:16]))
            if chance < noise[task.name] * 2**64:
                labels[row] = (labels[row] + 1 + other % (classes - 1)) % classes
        return changed_rows(task.train, range(len(labels)), label=labels)

    return _with_training(task_set, "label_noise", noise, wrong)


def _with_training(
    task_set: TaskSet, option: str, by_task: Mapping[str, float], change: Callable[[Task], datasets.Dataset]
) -> TaskSet:
    """The task set with changed training images of some tasks, and a manifest that says so."""
    names = list(task_set.class_names)
    if unknown := [name for name in by_task if name not in names]:
        raise ValueError(
            f"`{option}` names {unknown[0]!r}: the tasks are {', '.join(names)}.{nearest(unknown[0], names)}"
        )
    tasks = tuple(replace(task, train=change(task)) if task.name in by_task else task for task in task_set)
    known = task_set.manifest
    keys = {task.name: {**known["tasks"][task.name], "train": read_column(task.train, "key")} for task in tasks}
    options = {**known["options"], option: dict(by_task)}
    return replace(task_set, tasks=tasks, manifest={**known, "options": options, "tasks": keys})
