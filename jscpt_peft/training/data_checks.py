"""Do the data belong to the model's tasks, and have all processes the same?"""

from __future__ import annotations

from jscpt_peft.data import ImageTaskDataset, read_column

from .distributed import gather_objects


def check_tasks(argument: str, dataset: ImageTaskDataset, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` where the data cannot be those of the model's tasks."""
    if len(dataset.datasets) != len(tasks):
        raise ValueError(
            f"`{argument}` has {len(dataset.datasets)} tasks, the model has {len(tasks)} ({list(tasks)}): make the "
            "model with `JSCPTConfig(tasks=task_set.class_names)`."
        )
    for (name, classes), task in zip(tasks.items(), dataset.datasets, strict=True):
        largest = max(read_column(task, "label"), default=-1)
        if largest >= len(classes):
            raise ValueError(
                f"`{argument}` has label {largest} in task {name!r}, for which the model has {len(classes)} classes: "
                "make the model with `JSCPTConfig(tasks=task_set.class_names)`."
            )


def check_same_data(datasets: dict[str, ImageTaskDataset | None]) -> None:
    """Raises a `ValueError` in every process where these have other numbers of images, as where one skipped a file."""
    sizes = {name: [len(task) for task in each.datasets] for name, each in datasets.items() if each is not None}
    found = gather_objects(sizes)
    for process, theirs in enumerate(found):
        if theirs != found[0]:
            raise ValueError(
                f"process {process} has {theirs} images a task, process 0 has {found[0]}: give all of them the same "
                "files (was one unreadable for a moment?)."
            )
