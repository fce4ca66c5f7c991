"""From images to class names with probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING

import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from jscpt_peft.settings import BatchSize, check_setting

from .task_context import deterministic, task_index
from .unseen_classes import unseen_class_embeds, unseen_logits

if TYPE_CHECKING:
    from jscpt_peft.data.transforms import ImageTransform

    from .tuner import JSCPTModel

__all__ = ["OPENAI_CLIP_MEAN", "OPENAI_CLIP_STD", "predict"]

ImageLike = Image.Image | str | os.PathLike


@torch.no_grad()
def predict(
    model: JSCPTModel,
    images: ImageLike | Iterable[ImageLike],
    task: str | None,
    batch_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    bf16: bool,
    classes: Sequence[str] | None,
) -> list[dict[str, float]]:
    """Probabilities of classes for each image, best first; arguments as for `JSCPTModel.predict`."""
    from jscpt_peft.data import image_transform  # here, since `datasets` takes seconds to import

    check_setting("batch_size", batch_size, BatchSize)
    if isinstance(images, str) or not isinstance(images, Iterable):
        images = [images]
    device = model.model.device
    task_id = None if task is None else task_index(task, model.task_names)
    (task_id,) = model.backbone.context.resolve(task_id, 1, model.task_names, device).tasks
    task = model.task_names[task_id]
    transform = image_transform(model.model.config.vision_config.image_size, image_mean, image_std, train=False)
    precision = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()  # the caller's own stays on
    predictions = []
    with deterministic():
        with precision:
            unseen = None if classes is None else unseen_class_embeds(model, task, classes)
        class_names = list(model.active_jscpt_config.tasks[task] if classes is None else classes)
        for pixels in pixel_batches(images, batch_size, transform):
            with precision:
                output = model.classify(pixels.to(device), task_id)
                logits = output.logits[:, : len(class_names)]
                if unseen is not None:
                    logits = unseen_logits(model, output.selected_embeds, unseen)
            probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
            for values, labels in zip(probabilities.tolist(), order.tolist(), strict=True):
                predictions.append({class_names[label]: value for label, value in zip(labels, values, strict=True)})
    return predictions


def pixel_batches(images: Iterable[ImageLike], batch_size: int, transform: ImageTransform) -> Iterator[torch.Tensor]:
    """Pixels `[B, 3, S, S]` of the images, one batch after the other; threads prepare the next one meanwhile.

    No more than two batches are held at a time, so that `images` may be a generator of any length.

    Raises:
        TypeError: an image is neither a PIL image nor a path.
        ValueError: an image cannot be read.
    """
    numbered = enumerate(images)
    with ThreadPoolExecutor() as pool:
        following = _start(pool, islice(numbered, batch_size), transform)
        while batch := following:
            following = _start(pool, islice(numbered, batch_size), transform)
            yield torch.stack([pixels.result() for pixels in batch])


def _start(
    pool: ThreadPoolExecutor, numbered: Iterable[tuple[int, ImageLike]], transform: ImageTransform
) -> list[Future[torch.Tensor]]:
    started = []
    for position, image in numbered:
        started.append(pool.submit(_pixels, position, image, transform))
        if isinstance(image, Image.Image):
            wait(started[-1:])  # the next image may be the same object, as in Pillow's iterator of an image's frames
    return started


def _pixels(position: int, image: ImageLike, transform: ImageTransform) -> torch.Tensor:
    from jscpt_peft.data.files import UNREADABLE, open_image

    if not isinstance(image, ImageLike):
        raise TypeError(
            f"`images[{position}]` is a {type(image).__name__}: give PIL images or paths of files (`classify` takes "
            "tensors)."
        )
    try:
        return transform(image if isinstance(image, Image.Image) else open_image(image), None)
    except UNREADABLE as error:
        raise ValueError(f"`images[{position}]` ({str(image)!r}) cannot be read: {error}") from error
