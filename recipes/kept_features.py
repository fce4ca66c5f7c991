"""Image features computed once for all runs of a table, where nothing that learns is in the image encoder.

A run then takes seconds. Training sees each image in a few random crops, the same in all runs, in the place of a new
crop every time.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from model_arguments import ModelArguments, config_of_any_tasks
from outside import OutsideModel
from outside_methods import OUTSIDE
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset
from transformers import CLIPModel

from jscpt_peft.data import ImageTaskDataset, TaskSet, read_column

BATCH = 64


class KeptFeatures(Dataset):
    """`ImageTaskDataset` with features in the place of images, as `[3, 1, D]` pictures of one row.

    Args:
        images: the images.
        keys: of each image.
        features: `[views, D]` by key; a draw takes view draw % views.
    """

    def __init__(self, images: ImageTaskDataset, keys: list[str], features: dict[str, Tensor]) -> None:
        self.sizes, self.has_groups, self.keys, self.features = images.sizes, images.has_groups, keys, features
        self.labels, self.task_ids = (
            [value for table in images.datasets for value in read_column(table, name)] for name in ("label", "task_id")
        )
        self.groups = (
            [each for table in images.datasets for each in read_column(table, "group")] if self.has_groups else []
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = key if isinstance(key, tuple) else (key, 0)
        views = self.features[self.keys[index]]
        picture = views[draw % len(views)].expand(3, 1, -1)
        item = {"pixel_values": picture, "labels": self.labels[index], "task_ids": self.task_ids[index]}
        return {**item, "groups": self.groups[index]} if self.has_groups else item


def keep_features(
    clip: CLIPModel, task_set: TaskSet, datasets: dict[str, ImageTaskDataset], views: int, path: Path
) -> dict[str, KeptFeatures]:
    """The data sets with features; those that are not in the file `path` yet are computed and added to it.

    Args:
        clip: the base model.
        task_set: with a `key` for every image.
        datasets: split -> its images.
        views: random crops of each training image.
        path: a file for one base model, size of crops and number of views.
    """
    table: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True) if path.exists() else {}
    kept, new = {}, False
    for split, images in datasets.items():
        keys = [key for part in task_set.split(split) for key in read_column(part, "key")]
        kind = "train" if split == "train" else "test"
        known = table.setdefault(kind, {})
        missing = [index for index, key in enumerate(keys) if key not in known]
        new = new or bool(missing)
        pictures = [row["image"] for part in task_set.split(split) for row in part] if missing else []
        for start in range(0, len(missing), BATCH):
            chosen = missing[start : start + BATCH]
            rows = [
                torch.stack(
                    [images.transform(pictures[i].convert("RGB"), random.Random(f"{keys[i]}/{view}")) for i in chosen]
                )
                for view in range(views if split == "train" else 1)
            ]
            with torch.no_grad():
                found = torch.stack([clip.get_image_features(pixel_values=each).pooler_output for each in rows], 1)
            known |= {keys[i]: each.clone() for i, each in zip(chosen, found, strict=True)}
        kept[split] = KeptFeatures(images, keys, known)
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{random.getrandbits(32)}")  # other processes may be at it
        torch.save(table, part)
        part.replace(path)
    return kept


def learns_in_image_encoder(arguments: ModelArguments) -> bool:
    """Whether a method changes the image features, so that they cannot be kept."""
    if arguments.method in OUTSIDE:
        return arguments.method == "clip_lora"
    return "vision" in config_of_any_tasks(arguments).prompted_towers


def take_kept_features(model: PeftModel | OutsideModel) -> None:
    """The model reads features where it would have computed them; not for one that learns in its image encoder."""
    if isinstance(model, OutsideModel):
        model.image_embeds = lambda pixel_values: normalize(pixel_values[:, 0, 0], dim=-1)
    else:
        model.base_model.backbone.image_features = lambda pixel_values, *_: pixel_values[:, 0, 0]
