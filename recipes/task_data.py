"""The tasks that a recipe works on: what the command line says of them, and their images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from transformers import CLIPImageProcessorPil

from jscpt_peft.data import SPLITS, ImageTaskDataset, TaskSet, image_transform, load_task_set, read_manifest
from jscpt_peft.data.base_to_new import SPLITTINGS, base_classes
from jscpt_peft.data.some_tasks import some_tasks
from jscpt_peft.data.splits import check_amount
from jscpt_peft.data.unequal import with_label_noise, with_shots
from jscpt_peft.settings import Between, Fraction, Name, OneOf, PositiveInt, check_settings, setting
from jscpt_peft.training.distributed import gather_objects

ASSETS = Path(__file__).parent / "assets"
ICONS = ASSETS / "icons"
Probability = Annotated[float, Between(0, 1)]


@dataclass
class DataArguments:
    """Which tasks, and how many of their images."""

    _argument_group_name: ClassVar[str] = "data"
    task_set: Name = setting(
        "shapes",
        "shapes (drawn on the fly), icons (in recipes/assets), folder (your own images in --data_root), emoji, "
        "office_home, mini_domainnet, few_shot_10, or benchmarks with commas between, such as food101,dtd.",
    )
    only_tasks: Name | None = setting(None, "Only these of the task set's tasks, with commas between. Default: all.")
    data_root: Name | None = setting(
        None,
        "folder: ROOT of ROOT/<task>/<class>/* or ROOT/<task>/{train,validation,test}/<class>/*. Benchmarks: the "
        "folder with the data sets in the layouts of CoOp, Dassl or LibMTL; default: the Hub.",
    )
    data_revision: Name | None = setting(
        None, "Branch, tag or commit of the benchmarks' Hub repositories in place of the pinned ones."
    )
    train_fraction: Fraction | None = setting(None, "Part of each class's training images to use.")
    # What `str` stands for, one value or task=value with commas between, is read below.
    shots: PositiveInt | str | dict[str, PositiveInt] | None = setting(
        None, "Training images per class: of all tasks, or of some, as in outline=2,solid=8."
    )
    split: Annotated[str, OneOf(SPLITTINGS)] = setting(
        "all",
        "Classes: all, or base_to_new: train on the first half of each task's, report these, the new ones and their "
        "harmonic mean.",
    )
    spurious_strength: Probability | str | dict[str, Probability] | None = setting(
        None, "shapes: correlation of background and class in training, 0 to 1, or per task: flat=0,chalk=0.95."
    )
    label_noise: Probability | str | dict[str, Probability] | None = setting(
        None, "Probability of a wrong label in training: of all tasks, or of some, as in chalk=0.7."
    )
    manifest: Name | None = setting(None, "Re-use the split of this manifest.json.")
    smallest_crop: Fraction = setting(0.08, "Smallest part of a training image's area that a random crop keeps.")
    jpeg_side: PositiveInt | None = setting(
        None,
        "Decode JPEGs for training at a half, quarter or eighth of their size where both sides stay at least so long: "
        "faster, with slightly other pixels. 448 suits images of 224. Default: whole.",
    )
    skip_bad_images: bool = setting(False, "Skip images that cannot be read.")

    def __post_init__(self) -> None:
        for name, kind in {"shots": int, "spurious_strength": float, "label_noise": float}.items():
            setattr(self, name, by_task(name, getattr(self, name), kind))
        check_settings(self)


def by_task(argument: str, value: Any, kind: type) -> Any:
    """`4` of `"4"` and `{"chalk": 0.7}` of `"chalk=0.7"`; whatever is no string as it is.

    Raises:
        ValueError: it is neither, or names a task twice.
    """
    if not isinstance(value, str):
        return value
    try:
        if "=" not in value:
            return kind(value)
        pairs = [[word.strip() for word in part.rsplit("=", 1)] for part in value.split(",")]
        values = {task: kind(number) for task, number in pairs}
    except ValueError as error:
        raise ValueError(f"`{argument}` must be one number or task=number,task=number, got {value!r}.") from error
    if len(values) < len(pairs):
        raise ValueError(f"`{argument}` {value!r} names a task twice.")
    return values


def load_data(data: DataArguments, seed: int) -> TaskSet:
    options = {
        "spurious_strength": data.spurious_strength,
        "revision": data.data_revision,
        "manifest": read_manifest(data.manifest) if data.manifest else None,
        "skip_bad_images": data.skip_bad_images or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    data_root = data.data_root or (str(ICONS) if data.task_set == "icons" else None)
    shots, noise = data.shots, data.label_noise
    if isinstance(shots, dict):
        check_amount(data.train_fraction, 1, given.get("manifest"))
        task_set = load_task_set(data.task_set, data_root, seed=seed, **given)
    else:
        task_set = load_task_set(data.task_set, data_root, data.train_fraction, shots, seed, **given)
    if data.only_tasks is not None:
        task_set = some_tasks(task_set, [name.strip() for name in data.only_tasks.split(",")])
    if isinstance(shots, dict):
        task_set = with_shots(task_set, shots, seed)
    if noise is not None:
        noise = noise if isinstance(noise, dict) else dict.fromkeys(task_set.class_names, noise)
        task_set = with_label_noise(task_set, noise, seed)
    sources = None if data.data_root else task_set.manifest["options"].get("sources")
    content = json.dumps([task_set.manifest["tasks"], sources]).encode()
    if len(set(gather_objects(hashlib.sha256(content).hexdigest()))) > 1:
        # Files that are others elsewhere, or a place on the Hub that some of the processes could not reach.
        raise ValueError(
            f"`task_set` {data.task_set!r} has other images in some processes than in others: start again, give "
            "all of them the same files, or a `manifest` that says which images to take."
        )
    return task_set


def trained_classes(task_set: TaskSet, data: DataArguments) -> TaskSet:
    """The task set with the classes that a training on it sees."""
    return base_classes(task_set) if data.split == "base_to_new" else task_set


def make_datasets(
    task_set: TaskSet, processor: CLIPImageProcessorPil, data: DataArguments, seed: int
) -> dict[str, ImageTaskDataset]:
    """The splits with CLIP's transforms: random crops and flips in training, resize and centre crop elsewhere.

    Raises:
        ValueError: JPEGs would be decoded smaller than the base model's images are.
    """
    size = processor.crop_size["height"]
    if data.jpeg_side is not None and data.jpeg_side < size:
        raise ValueError(
            f"`jpeg_side` is {data.jpeg_side}, but the base model's images have {size} pixels a side: give at least "
            "that, better twice as many."
        )
    transforms = {
        train: image_transform(size, processor.image_mean, processor.image_std, train, data.smallest_crop)
        for train in (True, False)
    }
    names, sides = task_set.class_names, {"train": data.jpeg_side}
    return {
        split: ImageTaskDataset(
            task_set.split(split), transforms[split == "train"], seed, class_names=names, jpeg_side=sides.get(split)
        )
        for split in SPLITS
    }
