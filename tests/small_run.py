"""A training run small enough for tests: three tasks of coloured pictures and a random tiny CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cache

import datasets
import numpy as np
import prompted
import torch
from PIL import Image

from jscpt_peft.data import ImageTaskDataset, collate, image_transform
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments

SIZES = {"train": (8, 5, 6), "validation": (3, 3, 3), "dev": (4, 4, 4), "test": (4, 3, 5)}


@cache
def columns(split: str, sizes: tuple[int, ...], groups: bool) -> list[datasets.Dataset]:
    """A table of every task, of random pictures whose mean colour tells the label."""
    rng = np.random.default_rng(sum(map(ord, split)))
    tables = []
    for task, size in enumerate(sizes):
        classes = len(list(prompted.TASKS.values())[task])
        labels = [index % classes for index in range(size)]
        images = [Image.fromarray((rng.uniform(0, 60, (32, 32, 3)) + 40 * label).astype(np.uint8)) for label in labels]
        rows = {"image": images, "label": labels, "task_id": [task] * size}
        if groups:
            rows["group"] = [index % 2 for index in range(size)]
        features = datasets.Features(
            {"image": datasets.Image()} | {name: datasets.Value("int64") for name in rows if name != "image"}
        )
        tables.append(datasets.Dataset.from_dict(rows, features=features))
    return tables


def pictures(split: str, sizes: Sequence[int] | None = None, train: bool = False, groups: bool = False):
    """The tables of a split as an `ImageTaskDataset`."""
    return copy(_pictures(split, tuple(sizes or SIZES[split]), train, groups))


@cache
def _pictures(split: str, sizes: tuple[int, ...], train: bool, groups: bool) -> ImageTaskDataset:
    tables = columns(split, sizes, groups)
    return ImageTaskDataset(tables, image_transform(32, (0.5,) * 3, (0.25,) * 3, train=train), seed=7)


class Spoiled(torch.utils.data.Dataset):
    """Images of which those of one task, or of all, are infinite in the draws that are chosen.

    Args:
        images: an `ImageTaskDataset`.
        when: tells of a draw, whether its image is infinite; a step takes B draws of every task.
        task: position of the task; `None`: all tasks.
    """

    def __init__(self, images, when=lambda _draw: True, task: int | None = 1) -> None:
        self.images, self.when, self.task, self.sizes = images, when, task, images.sizes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key):
        item = self.images[key]
        spoiled = self.task in (None, item["task_ids"]) and self.when(key[1])
        return {**item, "pixel_values": item["pixel_values"] * torch.inf} if spoiled else item


def trainer(output_dir, model=None, callbacks=None, sizes=None, weighting=None, **options) -> JSCPTTrainer:
    """A `JSCPTTrainer` on these pictures; `options` are those of `JSCPTTrainingArguments`, `sizes` replace `SIZES`.

    `weighting` is one of one's own, or the name of one.
    """
    sizes = {**SIZES, **(sizes or {})}
    if isinstance(weighting, str):
        weighting, options = None, {**options, "weighting": weighting}
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "lower_steps": 2,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    arguments = JSCPTTrainingArguments(output_dir=str(output_dir), **{**defaults, **options})
    return JSCPTTrainer(
        prompted.prompted_clip(torch.float32) if model is None else model,
        arguments,
        train_dataset=pictures("train", sizes["train"], train=True),
        dev_dataset=pictures("dev", sizes["dev"]),
        eval_dataset=pictures("validation", sizes["validation"]),
        callbacks=callbacks,
        weighting=weighting,
    )


def remade(run: JSCPTTrainer, **keywords) -> JSCPTTrainer:
    """The run's trainer with further or other arguments."""
    data = {"train_dataset": run.train_dataset, "dev_dataset": run.dev_dataset, "eval_dataset": run.eval_dataset}
    return JSCPTTrainer(**{"model": run.model, "args": run.args, **data, **keywords})


def batches_of(run: JSCPTTrainer, steps: int) -> list[dict[str, torch.Tensor]]:
    """The run's training batches."""
    sampler = run.get_train_dataloader().batch_sampler
    return [
        collate([run.train_dataset[key] for key in sampler.batch(step % len(sampler), step // len(sampler))])
        for step in range(steps)
    ]


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """θ."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_parameters(run: JSCPTTrainer) -> dict[str, torch.Tensor]:
    """The adapter's parameters after (or before) a run."""
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if ".jscpt_" in name}
