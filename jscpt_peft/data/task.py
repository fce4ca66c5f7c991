"""A task is a labelled image data set with its own class names; a task set is what one run trains jointly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jscpt_peft.choices import alike, printable, visible

if TYPE_CHECKING:  # takes seconds to import
    import datasets

SPLITS = ("train", "validation", "dev", "test")


def read_column(dataset: datasets.Dataset, name: str) -> list:
    """One column of `dataset` as a list, without decoding or drawing a single image."""
    return dataset.with_format("arrow", columns=[name])[:][name].to_pylist()


def changed_rows(dataset: datasets.Dataset, rows: Sequence[int], **columns: Sequence[int]) -> datasets.Dataset:
    """Some rows, opened as before, with other numbers in some columns; no image is decoded."""
    import datasets
    import pyarrow as pa

    table = dataset.with_format("arrow")[:].take(pa.array(rows, pa.int64()))
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.int64()))
    changed = datasets.Dataset(table.cast(dataset.features.arrow_schema), info=dataset.info)
    shown = dict(dataset.format)
    return changed.with_format(**{**shown, **shown.pop("format_kwargs")})


def named_classes(dataset: datasets.Dataset) -> list[str] | None:
    """What a data set itself says that its labels mean; None where these are mere numbers."""
    return getattr(dataset.features.get("label"), "names", None)  # of a `ClassLabel`


def first_difference(given: Sequence[str], expected: Sequence[str]) -> str:
    """Where two lists of class names differ first, in words."""
    for label, (one, other) in enumerate(zip(given, expected, strict=False)):
        if one != other:
            return f"label {label} is {one!r} instead of {other!r}"
    return f"{len(given)} classes instead of {len(expected)}"


def check_names(task: str, class_names: Sequence[str]) -> None:
    """Raises a TypeError or a ValueError where names are no strings, blank, not to be printed, or not unique."""
    for argument, names in ((f"`name` of task {task!r}", [task]), (f"`class_names` of task {task!r}", class_names)):
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"{argument} holds {name!r} of type {type(name).__name__}: names are strings.")
            if not visible(name) or printable(name) != name:
                raise ValueError(f"{argument} holds {name!r}, which is blank or has control characters: rename it.")
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"`class_names` of task {task!r} holds {repeated[0]!r} more than once: merge these classes or give them "
            "different names."
        )
    if twins := alike(class_names):
        raise ValueError(
            f"`class_names` of task {task!r} holds {twins[0]!a} and {twins[1]!a}, which look alike: rename one."
        )


@dataclass(frozen=True, eq=False)
class Task:
    """One image-classification task.

    Rows of every split hold `image` (PIL image), `label` (index into `class_names`), `task_id` (position in the task
    set) and optionally `group` (index of the group for worst-group accuracy) and `key` (what the manifest calls it).

    Args:
        name: the task's name.
        class_names: the classes in the order of their labels.
        train: images of the lower level (Eq. 9).
        validation: images of model selection; may be empty, then there is none.
        dev: the paper's D_dev (Eq. 11): seen by the scheduler only, disjoint from `validation`.
        test: images of the final figures.
        template: the zero-shot template, with `{}` where the class name goes.

    Raises:
        TypeError: a name is no string.
        ValueError: duplicate class names, a name with control characters, a label out of range or a `ClassLabel` of
            other names, a class without training images, an empty dev set.
    """

    name: str
    class_names: tuple[str, ...]
    train: datasets.Dataset
    validation: datasets.Dataset
    dev: datasets.Dataset
    test: datasets.Dataset
    template: str = "a photo of a {}."

    def __post_init__(self) -> None:
        check_names(self.name, self.class_names)
        if len(self.train) == 0:
            raise ValueError(f"`train` of task {self.name!r} is empty: a task needs training images of every class.")
        for split in SPLITS:
            self._check_labels(split)
        seen = set(read_column(self.train, "label"))
        unseen = [name for label, name in enumerate(self.class_names) if label not in seen]
        if unseen:
            raise ValueError(
                f"`class_names` of task {self.name!r}: class {unseen[0]!r} has no training images"
                f"{f' (nor have {len(unseen) - 1} others)' if len(unseen) > 1 else ''}: add some or drop the class."
            )
        if len(self.dev) == 0:
            raise ValueError(
                f"`dev` of task {self.name!r} is empty: the scheduler learns from it (Eq. 11); give the task "
                "validation images, or more training images to take it from."
            )

    def _check_labels(self, split: str) -> None:
        dataset, classes = self.split(split), len(self.class_names)
        wrong = [label for label in read_column(dataset, "label") if label not in range(classes)]
        if wrong:
            raise ValueError(
                f"`{split}` of task {self.name!r} holds label {wrong[0]}, out of range for its {classes} "
                f"`class_names`: labels are 0 to {classes - 1}."
            )
        own = named_classes(dataset)
        if own is not None and own != list(self.class_names):
            raise ValueError(
                f"`{split}` of task {self.name!r} has labels of other classes, or in another order, than its "
                f"`class_names` ({first_difference(own, self.class_names)}): give the names in the data set's order."
            )

    def split(self, name: str) -> datasets.Dataset:
        """The split called `name`, one of `train`, `validation`, `dev`, `test`."""
        if name not in SPLITS:
            raise ValueError(f"`name` is {name!r}: a split is one of {', '.join(SPLITS)}.")
        return getattr(self, name)


@dataclass(frozen=True, eq=False)
class TaskSet:
    """The tasks of one run, in the order of their task ids.

    Args:
        name: the task set's name.
        tasks: one `Task` each; the rows of `tasks[i]` have `task_id` i.
        manifest: what was sampled, as JSON: `{"task_set", "seed", "options", "tasks": {task: {split: [keys]}}}`.

    Raises:
        ValueError: no task, duplicate task names, a `task_id` that is not the task's position.
    """

    name: str
    tasks: tuple[Task, ...]
    manifest: dict

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"`tasks` of task set {self.name!r} is empty: give at least one task.")
        duplicates = [name for name, count in Counter(task.name for task in self.tasks).items() if count > 1]
        if duplicates:
            raise ValueError(f"`tasks` of task set {self.name!r} holds two tasks named {duplicates[0]!r}: rename one.")
        if twins := alike(task.name for task in self.tasks):
            raise ValueError(
                f"`tasks` of task set {self.name!r} holds {twins[0]!a} and {twins[1]!a}, which look alike: rename one."
            )
        for position, task in enumerate(self.tasks):
            for split in SPLITS:
                wrong = set(read_column(task.split(split), "task_id")) - {position}
                if wrong:
                    raise ValueError(
                        f"`{split}` of task {task.name!r} holds `task_id` {wrong.pop()}, but the task is number "
                        f"{position} of {len(self.tasks)} in task set {self.name!r}: the two must agree."
                    )

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Task name -> class names, in the order of task ids: what `JSCPTConfig(tasks=...)` takes."""
        return {task.name: list(task.class_names) for task in self.tasks}

    def split(self, name: str) -> tuple[datasets.Dataset, ...]:
        """The split called `name` (`train`, `validation`, `dev` or `test`) of every task, in the order of task ids."""
        return tuple(task.split(name) for task in self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)
