"""Captioned images for `pretrain_tiny_clip.py`: scenes of `shapes`, and emoji."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from jscpt_peft.data.drawing import BACKGROUNDS, IMAGE_SIZE, STYLES, Scene, draw_scene, sample_scene
from jscpt_peft.data.files import open_image
from jscpt_peft.data.outlines import OUTLINES


@dataclass(frozen=True)
class CaptionedImages:
    """Images [n, 3, S, S] uint8 and what may be said of each: `captions[i]` are the captions of image i."""

    pixels: Tensor
    captions: list[list[str]]


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def scene_captions(scene: Scene) -> list[str]:
    """What a person might write under a scene, from brief to full."""
    shape, colour, style, background = scene.shape, scene.colour, scene.style, f"{scene.ground} {scene.background}"
    return [
        *[f"a photo of {article(shape)}."] * 3,
        f"{article(colour)} {shape}.",
        f"a photo of {article(colour)} {shape}.",
        f"a {style} picture of {article(shape)}.",
        f"{article(shape)} on {article(background)} background.",
        f"a {style} picture of {article(colour)} {shape} on {article(background)} background.",
    ]


def emoji_captions(entry: dict) -> list[str]:
    """`entry` is a line of captions.jsonl."""
    name, kind, keywords = entry["name"], entry["class"], entry["keywords"]
    return [
        f"a photo of {article(name)}.",
        f"{name}.",
        f"a photo of {article(kind)}.",
        f"a photo of a {kind}.",
        f"{name}, {article(kind)}.",
        f"{', '.join(keywords[:5])}.",
    ]


def draw_scenes(count: int, seed: int) -> CaptionedImages:
    """Scenes that no task has, and easier ones (nearly upright, little clutter).

    Colour, shape, style and background are independent of each other.
    """
    rng = Random(f"{seed}/scenes")
    scenes = [
        sample_scene(
            f"{seed}/pretrain/{index}",
            rng.choice(list(OUTLINES)),
            rng.choice(list(STYLES)),
            rng.choice(BACKGROUNDS),
            max_rotation=0.03,
            max_clutter=1,
        )
        for index in range(count)
    ]
    pixels = np.stack([np.asarray(draw_scene(scene)) for scene in scenes])
    return CaptionedImages(torch.from_numpy(pixels).permute(0, 3, 1, 2), [scene_captions(scene) for scene in scenes])


def read_emoji(root: Path) -> CaptionedImages:
    """The pretraining emoji in every style; those of the tasks are left alone."""
    entries = [json.loads(line) for line in (root / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    pixels, captions = [], []
    for entry in entries:
        if entry["split"] != "pretrain":
            continue
        for style in sorted((root / "pretrain").iterdir()):
            path = style / f"{entry['emoji']}.png"
            if path.exists():
                image = open_image(path).convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
                pixels.append(np.asarray(image))
                captions.append(emoji_captions(entry))
    return CaptionedImages(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), captions)
