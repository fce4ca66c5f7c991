"""Pixels of images for `predict`, read batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from jscpt_peft.data.transforms import ImageTransform

ImageLike = Image.Image | str | os.PathLike


def pixel_batches(images: Iterable[ImageLike], batch_size: int, transform: ImageTransform) -> Iterator[Tensor]:
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
) -> list[Future[Tensor]]:
    started = []
    for position, image in numbered:
        started.append(pool.submit(_pixels, position, image, transform))
        if isinstance(image, Image.Image):
            wait(started[-1:])  # the next image may be the same object, as in Pillow's iterator of an image's frames
    return started


def _pixels(position: int, image: ImageLike, transform: ImageTransform) -> Tensor:
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
