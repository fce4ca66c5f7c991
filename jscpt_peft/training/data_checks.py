"""Do the data belong to the model's tasks, and have all processes the same?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel

from jscpt_peft.data import ImageTaskDataset, read_column
from jscpt_peft.data.by_task import ByTask, check_map_style, parts_of, task_ids_of
from jscpt_peft.data.task import first_difference
from jscpt_peft.model import JSCPTModel

from .distributed import gather_objects


def check_model(model: Any) -> PeftModel:
    """The model, if it is one that `JSCPTTrainer` trains; a `TypeError` otherwise."""
    if not (isinstance(model, PeftModel) and isinstance(model.base_model, JSCPTModel)):
        raise TypeError(
            f"`model` must be a PeftModel made by `get_peft_model(clip, JSCPTConfig(...))`, got {type(model)}."
        )
    return model


def check_data(model: PeftModel, **arguments: Any) -> None:
    """Raises an error that names the argument whose images cannot be those of the model's tasks.

    Args:
        model: the JSCPT model.
        arguments: argument of the trainer -> its images, or several such data sets by name.

    Raises:
        TypeError: images that cannot be read in any order.
        ValueError: other tasks, or labels that are not theirs; no training images.
    """
    tasks = model.active_jscpt_config.tasks
    for argument, given in arguments.items():
        for dataset in given.values() if isinstance(given, dict) else [given]:
            if dataset is not None:
                check_map_style(argument, dataset)
                check_tasks(argument, dataset, tasks)
    train_dataset = arguments["train_dataset"]
    if train_dataset is not None:
        check_some("train_dataset", train_dataset)
        _check_trained_task(train_dataset, model.trained_task, model.task_names)


def check_some(argument: str, dataset: Any) -> None:
    """Raises a `ValueError` where there are no images."""
    if len(dataset) == 0:
        raise ValueError(f"`{argument}` has no images: give some.")


def check_tasks(argument: str, dataset: Any, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` where some of the data cannot be those of the model's tasks, as far as they tell."""
    for part in parts_of(dataset):
        if isinstance(part, ImageTaskDataset):
            _check_images(argument, part, tasks)
    if isinstance(dataset, ByTask):
        _check_ids(argument, dataset.task_ids, tasks)
    for part in parts_of(dataset):
        if hasattr(part, "features"):
            _check_features(argument, part, tasks)


def _check_features(argument: str, table: Any, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` where the `ClassLabel`s of a Hugging Face data set name other tasks or classes."""
    names = {name: getattr(feature, "names", None) for name, feature in table.features.items()}
    own_tasks = names.get("task_ids") or names.get("task_id")
    if own_tasks is not None and own_tasks != list(tasks):
        raise ValueError(
            f"`{argument}` numbers the tasks {own_tasks}, the model {list(tasks)}: give them in the model's order."
        )
    classes = names.get("labels") or names.get("label")
    for task_id in sorted(set(task_ids_of(table))) if classes is not None else ():
        name = list(tasks)[task_id]
        if classes != list(tasks[name]):
            raise ValueError(
                f"`{argument}` has other classes in task {name!r} than the model, or in another order "
                f"({first_difference(classes, tasks[name])}): give the labels in the model's order."
            )


def _check_images(argument: str, dataset: ImageTaskDataset, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` where the data cannot be those of the model's tasks, or of those that they name."""
    names, task_ids = list(tasks), dataset.task_ids
    if task_ids is None:
        if len(dataset.datasets) != len(tasks):
            raise ValueError(
                f"`{argument}` has {len(dataset.datasets)} tasks, the model has {len(tasks)} ({names}): make the "
                "model with `JSCPTConfig(tasks=task_set.class_names)`, or say which of its tasks they are, "
                "`ImageTaskDataset(..., task_ids=[...])`."
            )
        task_ids = range(len(tasks))
    _check_ids(argument, task_ids, tasks)
    for position, (task_id, data) in enumerate(zip(task_ids, dataset.datasets, strict=True)):
        name = names[task_id]
        own = name if dataset.task_names is None else dataset.task_names[position]
        if own != name:
            raise ValueError(
                f"`{argument}` has task {own!r} where the model has {name!r}: say which of the model's tasks "
                f"({names}) the data sets are, `ImageTaskDataset(..., task_ids=[...])`."
            )
        classes = dataset.class_names[position]
        if classes is not None and classes != list(tasks[name]):
            raise ValueError(
                f"`{argument}` has other classes in task {name!r} than the model, or in another order "
                f"({first_difference(classes, tasks[name])}): make the model with "
                "`JSCPTConfig(tasks=task_set.class_names)`, or give the data in the model's order."
            )
        largest = max(read_column(data, "label"), default=-1)
        if largest >= len(tasks[name]):
            raise ValueError(
                f"`{argument}` has label {largest} in task {name!r}, for which the model has {len(tasks[name])} "
                "classes: make the model with `JSCPTConfig(tasks=task_set.class_names)`."
            )


def _check_ids(argument: str, task_ids: Sequence[int], tasks: dict[str, list[str]]) -> None:
    for task_id in task_ids:
        if task_id not in range(len(tasks)):
            raise ValueError(
                f"`{argument}` has the task id {task_id}, the model has ids 0..{len(tasks) - 1} ({list(tasks)}): "
                "`task_ids` are positions in `model.task_names`."
            )


def _check_trained_task(dataset: ImageTaskDataset, trained: str | None, task_names: list[str]) -> None:
    """Raises a `ValueError` where one task is trained alone, `trained`, and has no training images."""
    if trained is not None and dataset.task_ids is not None and task_names.index(trained) not in dataset.task_ids:
        there = [task_names[task_id] for task_id in dataset.task_ids]
        raise ValueError(
            f"`train_dataset` holds images of {there}, but `train_only({trained!r})` lets no other task learn: give "
            f"that task's images, or undo it with `train_only(None)`."
        )


def check_same_data(datasets: dict[str, ImageTaskDataset | None]) -> None:
    """Raises a `ValueError` in every process where these have other numbers of images, as where one skipped a file."""
    sizes = {name: each.sizes for name, each in datasets.items() if each is not None}
    found = gather_objects(sizes)
    for process, theirs in enumerate(found):
        if theirs != found[0]:
            raise ValueError(
                f"process {process} has {theirs} images a task, process 0 has {found[0]}: give all of them the same "
                "files (was one unreadable for a moment?)."
            )
