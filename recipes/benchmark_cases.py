"""The benchmark's cases beside a single step: one setting at a time, and what is not a step."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_memory import memory
from benchmark_steps import precision, random_batch, random_model, trainable
from measuring import measure
from peft import PeftModel
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from jscpt_peft.data import image_transform
from jscpt_peft.data.files import open_image
from jscpt_peft.methods import METHODS

Row = dict[str, Any]
Measured = Callable[[Any], dict]
PHOTO_SIZES = ((500, 375), (2000, 1500))  # as data sets of prompt learning hold them, and as cameras make them
PHOTOS, JPEG_SIDE = 32, 448


def sweep(name: str, values: Iterable[Any]) -> Callable[[Any, Measured], list[Row]]:
    """A row for each value of a setting: seconds and peak memory of joint training and of a full lower step."""

    def rows(arguments: Any, measured: Measured) -> list[Row]:
        found = []
        for value in values:
            changed = replace(arguments, **{name: value}, quick=True)
            if name == "method" and not trainable(random_model(changed)):
                continue
            report = measured(changed)
            row = {name: value, **{f"{variant} s": seconds for variant, seconds in report["seconds"].items()}}
            row |= report["ratios"]
            found.append({**row, "peak GB": max(each or 0 for each in report["peak_bytes"].values()) / 1e9})
        return found

    return rows


class Photos(Dataset):
    """JPEG files through the transform of training."""

    def __init__(self, paths: list[Path], size: int, jpeg_side: int | None) -> None:
        self.paths = paths
        self.jpeg_side = jpeg_side
        self.transform = image_transform(size, (0.5,) * 3, (0.25,) * 3, train=True)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(open_image(self.paths[index], self.jpeg_side), random.Random(index))


def photo(width: int, height: int) -> Image.Image:
    """Noise that a JPEG stores in as many bytes as a photograph: coarse in all colours, with a little fine one."""
    coarse = [Image.effect_noise((width // 8, height // 8), 80) for _ in range(3)]
    picture = Image.merge("RGB", coarse).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(picture, Image.effect_noise((width, height), 40).convert("RGB"), 0.1)


def loading(arguments: Any, _measured: Measured) -> list[Row]:
    """Images per second of one data worker: read, decoded, cropped, normalised; JPEGs decoded whole or reduced."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in PHOTO_SIZES:
            paths = [Path(folder, f"{width}-{number}.jpg") for number in range(PHOTOS)]
            for path in paths:
                photo(width, height).save(path, quality=90)
            loaders = {side: DataLoader(Photos(paths, 224, side), batch_size=16) for side in (None, JPEG_SIDE)}
            variants = {side: partial(list, loader) for side, loader in loaders.items()}
            seconds, _ = measure(variants, arguments.repeats, "cpu")
            rates = {side: PHOTOS / median(each) for side, each in seconds.items()}
            row = {"pixels": f"{width}x{height}", "images per second and worker": rates[None]}
            found.append({**row, f"with jpeg_side {JPEG_SIDE}": rates[JPEG_SIDE]})
    return found


def evaluation(arguments: Any, _measured: Measured) -> list[Row]:
    """Images per second of `classify` without gradients, class features kept, of a batch and of one image."""
    model = random_model(arguments)
    batch = random_batch(model, arguments, 0)

    def classify(count: int) -> None:
        with torch.no_grad(), precision(batch, arguments.dtype):
            model.classify(batch.pixel_values[:count], batch.task_ids[:count])

    variants = {count: partial(classify, count) for count in (len(batch.labels), 1)}
    seconds, _ = measure(variants, arguments.repeats, arguments.device)
    return [{"images together": count, "images per second": count / median(each)} for count, each in seconds.items()]


def adapter_loading(arguments: Any, _measured: Measured) -> list[Row]:
    """Seconds to load an adapter into a model that has its base in memory already."""
    model = random_model(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        base = model.unload()
        load = {"": lambda: PeftModel.from_pretrained(base, folder).unload()}
        seconds, _ = measure(load, arguments.repeats, arguments.device)
    return [{"tasks": arguments.tasks, "classes": arguments.classes, "seconds": median(seconds[""])}]


CASES: dict[str, Callable[[Any, Measured], list[Row]]] = {
    "tasks": sweep("tasks", (1, 4, 16, 64)),
    "classes": sweep("classes", (10, 100, 1000, 4000)),
    "images": sweep("images", (1, 4, 16, 32)),
    "prompt_depth": sweep("prompt_depth", (1, 2)),
    "tokens": sweep("tokens", (2, 8, 16)),
    "method": sweep("method", METHODS),
    "memory": memory,
    "loading": loading,
    "evaluation": evaluation,
    "adapter": adapter_loading,
}
"""Name -> (arguments, what measures a step) -> rows of figures."""
