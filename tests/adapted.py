"""The package's own small CLIP under a random adapter: real class names, a real tokenizer, a real image processor."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import numpy as np
import prompted
import torch
from paths import TINY_CLIP
from peft import PeftModel, get_peft_model
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, Pipeline, pipeline

from jscpt_peft import JSCPTConfig

# Tasks with different numbers of classes, whose names have different lengths.
TASKS = {
    "painting": ["star", "house", "lightning bolt", "plus sign", "cloud"],
    "sketch": ["circle", "house", "pointer"],
}
TEMPLATE = "a drawing of a {}."

# Rounding the two features of a cosine to bfloat16 once (relative error 2^-8 each) may move it by this much. The
# blocks' own roundings hit each of many channels in its own direction and add less.
BF16_COSINE = 2**-7


@cache
def _loaded(dtype: torch.dtype) -> CLIPModel:
    return CLIPModel.from_pretrained(TINY_CLIP, dtype=dtype).eval()


def clip(dtype: torch.dtype = torch.float32) -> CLIPModel:
    """The small CLIP itself."""
    return deepcopy(_loaded(dtype))


def adapted_clip(dtype: torch.dtype = torch.float32, tasks: dict[str, list[str]] = TASKS, **options) -> PeftModel:
    """What starts at zero is moved, so that every part of the adapter changes the predictions."""
    options = {"class_template": TEMPLATE, **options}
    model = get_peft_model(clip(dtype), JSCPTConfig(tasks=tasks, prompt_init_std=0.05, **options))
    prompted.move([parameter for parameter in model.task_adapter.head.parameters() if parameter.requires_grad])
    return model


def classifier(model: PeftModel | CLIPModel | str) -> Pipeline:
    """The pipeline of transformers for zero-shot classification."""
    parts = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    parts = {name: kind.from_pretrained(TINY_CLIP) for name, kind in parts.items()}
    return pipeline("zero-shot-image-classification", model=model, **parts)


def scores(answers: list[list[dict]]) -> list[dict[str, float]]:
    """What a pipeline answers, as `predict` would."""
    return [{each["label"]: each["score"] for each in answer} for answer in answers]


def of_templates(model: PeftModel | CLIPModel, texts: list[list[str]], **options) -> torch.Tensor:
    """Features `[C, D]` of classes from their texts by template: of one template its own, else the normalised mean."""
    tokenizer, each = AutoTokenizer.from_pretrained(TINY_CLIP), []
    for classes in texts:
        ids = tokenizer(classes, padding=True, return_tensors="pt").input_ids
        each.append(model.get_text_features(input_ids=ids, **options).pooler_output)
    return each[0] if len(each) == 1 else torch.stack([F.normalize(z, dim=-1) for z in each]).mean(0)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """RGB pictures of different sizes, coarse and coloured."""
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return [image.resize((80 + 7 * index, 64 + 3 * index)) for index, image in enumerate(coarse)]


def table(predictions: list[dict[str, float]], task: str) -> torch.Tensor:
    """Probabilities `[images, classes]` in the order of the task's classes."""
    return torch.tensor([[each[name] for name in TASKS[task]] for each in predictions], dtype=torch.float64)


def cosines(predictions: list[dict[str, float]], task: str, model: PeftModel) -> torch.Tensor:
    """Cosines `[images, classes]` behind probabilities, up to a constant an image: here their mean is zero."""
    logits = table(predictions, task).log()
    return (logits - logits.mean(dim=1, keepdim=True)) / model.get_base_model().logit_scale.exp().double()
