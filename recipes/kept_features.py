"""Image features computed once for all runs of a table, where nothing that learns is in the image encoder.

A run then takes seconds. Training sees each image in a few random crops, the same in all runs, in the place of a new
crop every time. Features are found by the names of images: where a file is replaced, choose another output folder.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from model_arguments import ModelArguments, config_of_any_tasks
from outside import OutsideModel
from outside_methods import OUTSIDE
from peft import PeftModel
from PIL.Image import Image
from task_data import DataArguments
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset
from transformers import CLIPModel

from jscpt_peft.data import ImageTaskDataset, TaskSet, read_column

BATCH = 64
Key = tuple[str, str]  # a task and what its manifest calls an image


class KeptFeatures(Dataset):
    """`ImageTaskDataset` with features in the place of images, as `[3, 1, D]` pictures of one row.

    Args:
        images: the images.
        keys: of each image, behind its task.
        features: `[views, D]` by key; a draw takes view draw % views.
    """

    def __init__(self, images: ImageTaskDataset, keys: list[Key], features: dict[Key, Tensor]) -> None:
        self.sizes, self.has_groups, self.keys, self.features = images.sizes, images.has_groups, keys, features
        names = ("label", "task_id", "group") if images.has_groups else ("label", "task_id")
        self.labels, self.task_ids, *groups = (
            [value for table in images.datasets for value in read_column(table, name)] for name in names
        )
        self.groups = groups[0] if groups else []

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = key if isinstance(key, tuple) else (key, 0)
        views = self.features[self.keys[index]]
        picture = views[draw % len(views)].expand(3, 1, -1)
        item = {"pixel_values": picture, "labels": self.labels[index], "task_ids": self.task_ids[index]}
        return {**item, "groups": self.groups[index]} if self.has_groups else item


def features_file(folder: Path, base: str, data: DataArguments, views: int) -> Path:
    """Where features of a table's runs are kept: apart where an image of the same name would look different."""
    pixels = [base, data.task_set, data.data_root, data.data_revision, data.spurious_strength]
    digest = hashlib.sha256(json.dumps(pixels).encode()).hexdigest()[:8]
    return folder / f"{Path(base).name}-{data.smallest_crop:g}-{views}-{digest}.pt"


def keep_features(
    clip: CLIPModel, task_set: TaskSet, datasets: dict[str, ImageTaskDataset], views: int, path: Path
) -> dict[str, KeptFeatures]:
    """The data sets by split with features, of `views` random crops of each training image and of one of the others.

    Those that are not in the file `path` yet (`features_file`) are computed and added to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # another process may be at the same images: it waits, and finds them
        table: dict[str, dict[Key, Tensor]] = torch.load(path, weights_only=True) if path.exists() else {}
        known = sum(map(len, table.values()))
        kept = {}
        for split, images in datasets.items():
            keys = [(task.name, key) for task in task_set for key in read_column(task.split(split), "key")]
            features = table.setdefault("train" if split == "train" else "test", {})
            rows = (row for part in task_set.split(split) for row in part)
            if set(keys) - features.keys():
                new = {key: row["image"] for key, row in zip(keys, rows, strict=True) if key not in features}
                features |= compute(clip, images.transform, new, views if split == "train" else 1)
            kept[split] = KeptFeatures(images, keys, features)
        if sum(map(len, table.values())) > known:
            part = path.with_suffix(".part")
            torch.save(table, part)
            part.replace(path)
    return kept


def compute(clip: CLIPModel, transform: Callable, images: dict[Key, Image], views: int) -> dict[Key, Tensor]:
    """`[views, D]` of each image, by its key, which decides the crops."""
    found: dict[Key, Tensor] = {}
    for start in range(0, len(images), BATCH):
        keys = list(images)[start : start + BATCH]
        crops = [
            torch.stack([transform(images[key].convert("RGB"), random.Random(f"{key[1]}/{view}")) for key in keys])
            for view in range(views)
        ]
        with torch.no_grad():
            batch = torch.stack([clip.get_image_features(pixel_values=each).pooler_output for each in crops], 1)
        found |= {key: each.clone() for key, each in zip(keys, batch, strict=True)}
    return found


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
