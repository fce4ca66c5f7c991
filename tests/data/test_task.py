from __future__ import annotations

import time

import pytest
from datasets import ClassLabel, Dataset

from jscpt_peft.data import ImageTaskDataset, Task, TaskSet


def rows(labels, task_id=0):
    return Dataset.from_dict({"label": list(labels), "task_id": [task_id] * len(labels)})


def task(name="art", class_names=("cat", "dog"), train=(0, 1), validation=(0,), dev=(1,), test=(0, 1), task_id=0):
    splits = {"train": train, "validation": validation, "dev": dev, "test": test}
    return Task(name, class_names, **{split: rows(labels, task_id) for split, labels in splits.items()})


def test_task_set_gives_names_and_splits_in_task_order():
    first, second = task("b"), task("a", ("x", "y", "z"), train=(2, 0, 1), task_id=1)
    task_set = TaskSet("mine", (first, second), {})
    assert list(task_set.class_names.items()) == [("b", ["cat", "dog"]), ("a", ["x", "y", "z"])]
    assert [len(split) for split in task_set.split("train")] == [2, 3]
    assert task_set.split("dev")[1] is second.dev
    assert list(task_set) == [first, second]
    assert len(task_set) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("cat", "cat")}, r"`class_names` of task 'art' holds 'cat' more than once"),
        ({"train": ()}, r"`train` of task 'art' is empty"),
        ({"train": (0, 0)}, r"class 'dog' has no training images"),
        ({"test": (0, 2)}, r"`test` of task 'art' holds label 2, out of range"),
        ({"validation": (-1,)}, r"`validation` of task 'art' holds label -1, out of range"),
        ({"dev": ()}, r"`dev` of task 'art' is empty"),
        ({"name": " "}, r"`name` of task ' ' holds ' ', which is blank"),
        ({"class_names": ("cat", "d\x1b")}, r"holds 'd\\x1b', which is blank or has control characters"),
    ],
)
def test_a_bad_task_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        task(**changes)


@pytest.mark.parametrize("changes", [{"name": 3}, {"class_names": ("cat", 1)}])
def test_names_are_strings(changes):
    with pytest.raises(TypeError, match="of type int: names are strings"):
        task(**changes)


def test_labels_of_other_names_are_refused():
    train = rows([0, 1]).cast_column("label", ClassLabel(names=["dog", "cat"]))
    with pytest.raises(ValueError, match=r"labels of other classes, or in another order.*label 0 is 'dog' instead of"):
        Task("art", ("cat", "dog"), train, rows([0]), rows([1]), rows([1]))


def test_20_000_classes_are_built_in_time():
    names = tuple(f"class {number}" for number in range(20_000))
    start = time.perf_counter()
    built = task(class_names=names, train=range(20_000))
    images = ImageTaskDataset(TaskSet("many", (built,), {}).split("train"), None, class_names={"art": names})
    assert images.class_names == (list(names),)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), r"`tasks` of task set 'mine' is empty"),
        ((task(), task(task_id=1)), r"two tasks named 'art'"),
        (
            (task(), task("clipart", task_id=0)),
            r"`train` of task 'clipart' holds `task_id` 0, but the task is number 1",
        ),
    ],
)
def test_a_bad_task_set_is_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        TaskSet("mine", tasks, {})
