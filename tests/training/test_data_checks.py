"""Data of other classes or tasks than the adapter's are refused by name, whichever way they come."""

from __future__ import annotations

import datasets
import prompted
import pytest
import small_run
import torch

from jscpt_peft.data import ImageTaskDataset
from jscpt_peft.training import JSCPTTrainer

TASKS = prompted.TASKS


def images(class_names, task_ids=None) -> ImageTaskDataset:
    given = small_run.pictures("test")
    chosen = given.datasets if task_ids is None else [given.datasets[number] for number in task_ids]
    return ImageTaskDataset(chosen, given.transform, class_names=class_names, task_ids=task_ids)


def swapped(names: list[str]) -> list[str]:
    return [names[1], names[0], *names[2:]]


first = next(iter(TASKS))


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (
            {**TASKS, first: swapped(TASKS[first])},
            f"in task '{first}' .*label 0 is '.*' instead of '{TASKS[first][0]}'",
        ),
        ([swapped(names) for names in TASKS.values()], "has other classes in task"),
        ({f"{name}s": names for name, names in TASKS.items()}, f"has task '{first}s' where the model has '{first}'"),
    ],
)
def test_other_names_are_refused(class_names, message, tmp_path):
    trainer = small_run.trainer(tmp_path)
    wrong = images(class_names)
    for name in ("train_dataset", "dev_dataset", "eval_dataset"):
        with pytest.raises(ValueError, match=f"`{name}` {message}" if message.startswith("has") else message):
            type(trainer)(trainer.model, trainer.args, **{name: wrong})
    for ask in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=message):
            ask(wrong)


def test_the_models_own_names_and_none_pass(tmp_path):
    trainer = small_run.trainer(tmp_path)
    answers = [trainer.predict(images(names)).predictions for names in (TASKS, list(TASKS.values()), None)]
    assert all(torch.equal(torch.as_tensor(each), torch.as_tensor(answers[0])) for each in answers)
    last = list(TASKS)[2]
    trainer.predict(images({last: TASKS[last]}, task_ids=[2]))
    with pytest.raises(ValueError, match=f"has task '{last}' where the model has '{first}'"):
        trainer.predict(
            ImageTaskDataset(images(None, [2]).datasets, None, class_names={last: TASKS[last]}, task_ids=[0])
        )


@pytest.mark.parametrize(
    ("labels", "tasks", "message"),
    [
        (["dog", "cat", "fox"], None, "label 0 is 'dog' instead of 'cat'"),
        (["cat", "dog", "fox"], ["clipart", "photo", "sketch"], "numbers the tasks"),
    ],
)
def test_names_in_a_plain_data_set_are_compared_too(tmp_path, labels, tasks, message):
    features = {"pixel_values": datasets.Array3D((3, 32, 32), "float32"), "labels": datasets.ClassLabel(names=labels)}
    features["task_ids"] = datasets.Value("int64") if tasks is None else datasets.ClassLabel(names=tasks)
    rows = {"pixel_values": [torch.zeros(3, 32, 32).tolist()] * 3, "labels": [0, 1, 2], "task_ids": [0, 0, 0]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features)).with_format("torch")
    run = small_run.trainer(tmp_path)
    with pytest.raises(ValueError, match=message):
        JSCPTTrainer(run.model, run.args, train_dataset=torch.utils.data.Subset(data, [0, 1, 2]))


def test_no_images_are_refused(tmp_path):
    """An evaluation of nothing would have neither a loss nor accuracies."""
    trainer, none = small_run.trainer(tmp_path), small_run.pictures("test", [0, 0, 0])
    with pytest.raises(ValueError, match="`train_dataset` has no images"):
        type(trainer)(trainer.model, trainer.args, dev_dataset=trainer.dev_dataset, train_dataset=none)
    with pytest.raises(ValueError, match="`eval_dataset` has no images"):
        trainer.evaluate(none)
    with pytest.raises(ValueError, match="`test_dataset` has no images"):
        trainer.predict(none)
    small_run.remade(trainer, eval_dataset=none).train()  # without evaluation: there may be no validation images
