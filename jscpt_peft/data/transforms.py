"""From any Pillow image to a normalised RGB tensor, as CLIP prompt learning (CoOp, arXiv:2109.01134) does it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from jscpt_peft.data.files import check_size
from jscpt_peft.settings import Between, Fraction, check_setting

ImageTransform = Callable[[Image.Image, random.Random | None], Tensor]

# CoOp's INPUT.RRCROP_SCALE and torchvision's RandomResizedCrop
SMALLEST_CROP = 0.08
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
MAX_SIDE = 8192


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` upright and in mode RGB; transparency is laid over white, deep greyscale is scaled to 8 bits.

    Harmless to repeat: Pillow takes the orientation out of the EXIF data of an image that it has turned.

    Raises:
        ValueError: it has no pixels, or more than `files.MAX_PIXELS`; it is not decoded then.
    """
    check_size(*image.size)
    if image.getexif().get(Image.ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits to mode L, where Pillow's own conversion would cut all levels above 255 to white.

    White is 65535 for 16 bits. Modes I and F define no white: it is the first of 1 (F only), 255 and 65535 that no
    pixel exceeds; beyond these limits the image's own range is stretched.
    """
    levels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    whites = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    low, high = levels.min(), levels.max()
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        levels, white = levels - low, max(high - low, 1e-12)
    return Image.fromarray(np.rint(levels * (255 / white)).astype(np.uint8))


def image_transform(
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    train: bool,
    smallest_crop: float = SMALLEST_CROP,
) -> ImageTransform:
    """The transform of CLIP prompt learning, for training (random resized crop and flip) or for everything else.

    The latter (shortest edge to `image_size`, bicubic; centre crop) equals `transformers.CLIPImageProcessor`.

    Args:
        image_size: side S of the result in pixels.
        mean, std: of the three channels, for pixels in [0, 1]; as in the processor's `image_mean`, `image_std`.
        train: whether to augment.
        smallest_crop: the smallest part of a image's area, in (0, 1], that a random crop may keep. Raise it for
            small images of single things, of which 8 % show nothing.

    Returns:
        A picklable callable (PIL image, `random.Random` or None) -> float32 tensor [3, S, S]. Augmentation draws from
        that generator alone.

    Raises:
        ValueError: a size below 1, `mean` or `std` that are not three numbers, `smallest_crop` out of its range, or
            the training transform called without generator.
    """
    check_setting("image_size", image_size, Annotated[int, Between(1, MAX_SIDE)])
    mean, std = check_statistics(mean, std)
    check_setting("smallest_crop", smallest_crop, Fraction)
    view = partial(_random_view, smallest_crop=smallest_crop) if train else _centre_view
    return partial(_transform, view=view, image_size=image_size, mean=mean, std=std)


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel; a `ValueError` where they are not three numbers each."""
    try:
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`mean` is {mean!r} and `std` is {std!r}: give three numbers each.") from error
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(
            f"`mean` is {mean} and `std` is {std}: give three finite numbers each, for red, green and blue, those of "
            "`std` above 0."
        )
    return mean, std


def _transform(
    image: Image.Image,
    rng: random.Random | None = None,
    *,
    view: Callable[[Image.Image, int, random.Random | None], Image.Image],
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    pixels = torch.from_numpy(np.array(view(to_rgb(image), image_size, rng)))
    pixels = pixels.permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _centre_view(image: Image.Image, image_size: int, rng: random.Random | None) -> Image.Image:  # noqa: ARG001 (as _random_view)
    width, height = image.size
    shortest = min(width, height)
    width, height = int(image_size * width / shortest), int(image_size * height / shortest)
    check_size(width, height)  # a strip of one by a million pixels would be blown up
    left, top = (width - image_size) // 2, (height - image_size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + image_size, top + image_size))


def _random_view(image: Image.Image, image_size: int, rng: random.Random | None, smallest_crop: float) -> Image.Image:
    if rng is None:
        raise ValueError("`rng` is None: the training transform augments, so give it a `random.Random`.")
    box = _random_box(*image.size, rng, smallest_crop)
    image = image.crop(box).resize((image_size, image_size), Image.Resampling.BICUBIC)
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _random_box(width: int, height: int, rng: random.Random, smallest_crop: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of torchvision's RandomResizedCrop."""
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(smallest_crop, 1)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = rng.randint(0, width - crop_width), rng.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    # a very long image: the largest central box of an allowed ratio
    crop_width = min(width, max(1, round(height * CROP_RATIO[1])))
    crop_height = min(height, max(1, round(width / CROP_RATIO[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
