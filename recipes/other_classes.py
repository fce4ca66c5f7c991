"""An adapter's tasks evaluated among other classes than their own, or on other tasks' images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor

from jscpt_peft.data import ImageTaskDataset, TaskSet
from jscpt_peft.data.base_to_new import base_classes, images_of_classes, new_classes
from jscpt_peft.data.transforms import ImageTransform
from jscpt_peft.evaluation import Predictions
from jscpt_peft.model.losses import task_logits
from jscpt_peft.model.task_rows import TaskRows
from jscpt_peft.model.unseen_classes import class_embeds_among
from jscpt_peft.reading import one_line, read_text
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments

BaseAndNew = tuple[list[float], list[float]]  # accuracies by task


class OtherClassesTrainer(JSCPTTrainer):
    """Predicts among the given classes of some of the adapter's tasks, under these tasks' prompts and templates.

    Args:
        model: a trained one.
        args: of the evaluation.
        classes: task -> class names, in the order of the test images' labels.
    """

    def __init__(self, model: PeftModel, args: JSCPTTrainingArguments, classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__(model, args, compute_metrics=None)
        self.classes = {task: list(names) for task, names in classes.items()}
        self.class_embeds = cache(lambda: class_embeds_among(self.model, self.classes))

    def tested_tasks(self) -> dict[str, list[str]]:
        return {**super().tested_tasks(), **self.classes}

    def prediction_step(self, _model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> tuple:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            embeds = self.model.classify(inputs["pixel_values"], inputs["task_ids"]).selected_embeds
            rows = TaskRows.of(inputs["task_ids"])
            logits = task_logits(embeds, *self.class_embeds(), rows, self.model.backbone.logits)
        return None, logits, tuple(inputs[name] for name in ("labels", "task_ids", "groups") if name in inputs)


def predict(trainer: JSCPTTrainer, images: ImageTaskDataset) -> Predictions:
    """The model's predictions of all images, in their order; `Trainer` shares the work among processes."""
    prediction = trainer.predict(images, metric_key_prefix="test")
    labels, _, *groups = prediction.label_ids
    task_ids = np.repeat(np.arange(len(images.datasets)), [len(task) for task in images.datasets])
    return Predictions.from_logits(prediction.predictions, labels, task_ids, groups[0] if groups else None)


def by_task(predictions: Predictions, names: list[str]) -> list[float]:
    """Accuracies `[N]` of tasks of these names."""
    accuracies = predictions.accuracies(names)
    return [accuracies[f"accuracy/{name}"] for name in names]


def base_and_new(
    model: PeftModel, args: JSCPTTrainingArguments, task_set: TaskSet, transform: ImageTransform, task_ids: list[int]
) -> BaseAndNew:
    """Accuracies `[N]` on the base and on the new classes of a task set, each among themselves.

    The task set has all classes; `task_ids` are the places of its tasks among the model's.
    """
    found = []
    for classes in (base_classes(task_set).class_names, new_classes(task_set)):
        trainer = OtherClassesTrainer(model, args, classes)
        images = ImageTaskDataset(images_of_classes(task_set, classes), transform, task_ids=task_ids)
        found.append(by_task(predict(trainer, images), list(classes)))
    return found[0], found[1]


def cross_domain(
    model: PeftModel, args: JSCPTTrainingArguments, tasks: Iterable[Any], transform: ImageTransform
) -> pd.DataFrame:
    """Accuracies of every task of the model, a row each, on every task's test images, among these images' classes.

    `tasks` are those of the images, with `name`, `class_names` and `test`.
    """
    rows = {}
    for place, prompts in enumerate(model.task_names):
        rows[prompts] = {}
        for task in tasks:
            trainer = OtherClassesTrainer(model, args, {prompts: task.class_names})
            images = ImageTaskDataset([task.test], transform, task_ids=[place])
            rows[prompts][task.name] = predict(trainer, images).accuracies([task.name])["mean_accuracy"]
    return pd.DataFrame.from_dict(rows, orient="index")


def class_list(words: str) -> list[str]:
    """Class names from a file such as `names.txt` with one per line, or as they stand, with commas between.

    Raises:
        ValueError: there is no name, or the file cannot be read.
    """
    names = words.split(",")
    if len(names) == 1 and Path(words).suffix:
        try:
            names = read_text(words).splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`classes` {words} cannot be read ({one_line(error)}): give a file of one name per line."
            ) from error
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError(f"`classes` {words!r} has no class names: give some with commas between, or a file of them.")
    return names
