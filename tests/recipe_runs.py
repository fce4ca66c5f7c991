"""What the tests of recipes share: images to learn from, short runs, and the message with which a program ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paths import TINY_CLIP
from peft import get_peft_model
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessorPil, CLIPModel

from jscpt_peft import JSCPTConfig

CLASSES = {"pens & ink": "black", "red things": "red", "sky": "blue"}
TASKS = ("my photos", "scans")
FORMATS = [("RGB", "jpg"), ("P", "gif"), ("L", "png"), ("RGBA", "webp"), ("RGB", "bmp")]
SMALL = ["--use_cpu", "--num_shared_tokens", "2", "--num_task_tokens", "2", "--eval_strategy", "no"]
QUICK = [*SMALL, "--max_steps", "4", "--lower_steps", "2", "--per_device_train_batch_size", "3"]
QUICK += ["--logging_steps", "2"]


def draw_images(root: Path, count: int = 10, suffix: str | None = None) -> Path:
    """Two tasks of three classes with `count` images each, in all kinds of formats unless `suffix` names one."""
    rng = random.Random(1)
    for task in TASKS:
        for name, colour in CLASSES.items():
            folder = root / task / name
            folder.mkdir(parents=True)
            for number in range(count):
                background = rng.choice(["white", "gray", colour, colour])
                image = Image.new("RGB", (rng.randrange(30, 90), rng.randrange(30, 90)), background)
                ImageDraw.Draw(image).ellipse([5, 5, 25, 25], fill=rng.choice([colour, "green"]))
                mode, kind = ("RGB", suffix) if suffix else FORMATS[number % len(FORMATS)]
                image.convert(mode).save(folder / f"{number}.{kind}")
    return root


def on_folder(images: Path, output: Path, *more: object) -> list[str]:
    """Arguments of a recipe on such a folder."""
    data = ["--task_set", "folder", "--data_root", images, "--seed", "3", "--use_cpu", "--output_dir", output]
    return [str(each) for each in (*data, *more)]


def statistics() -> dict[str, list[float]]:
    """Of the small CLIP's image processor, for `predict`."""
    processor = CLIPImageProcessorPil.from_pretrained(TINY_CLIP)
    return {"image_mean": processor.image_mean, "image_std": processor.image_std}


def save_adapter(folder: Path, tasks: dict[str, list[str]]) -> Path:
    """A random adapter of the small CLIP, in whose predictions every part of it counts."""
    config = JSCPTConfig(tasks=tasks, num_shared_tokens=1, num_task_tokens=2, class_template="a photo of a {}.")
    model = get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".jscpt_" in name:
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def fails(capsys: pytest.CaptureFixture, main: Callable[[list[str]], None], *arguments: object) -> str:
    """The message with which `main` ends the program."""
    with pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    assert stop.value.code not in (0, None)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return " ".join((captured.out + captured.err).split())
