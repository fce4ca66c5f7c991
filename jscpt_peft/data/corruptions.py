"""Common corruptions of images at three severities, to measure how well a classifier bears them.

After Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261): those of their corruptions that are a line of Pillow or
numpy, with the strengths of their severities 1, 3 and 5 at 224 pixels (`brightness` is added to every channel). An
image is corrupted at the size at which the model sees it: downscaling a large one afterwards would average the
corruption away. Blur scales with that size; what is drawn per pixel (noise, JPEG's quantisation) with its square root,
as less is averaged out in a smaller image. So accuracies cannot be compared with published ones.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from jscpt_peft.choices import check_choice
from jscpt_peft.data.transforms import to_rgb

SEVERITIES = (1, 2, 3)
REFERENCE_SIDE = 224
"""Shorter side in pixels that the strengths below belong to."""


def corrupt(
    image: Image.Image, corruption: str, severity: int, seed: int = 0, key: str = "", size: int = REFERENCE_SIDE
) -> Image.Image:
    """`image` corrupted: a pure function of the arguments.

    Args:
        image: in any mode.
        corruption: one of `CORRUPTIONS`.
        severity: 1, 2 or 3.
        seed: of all that is drawn.
        key: what tells the image from others, so that each gets a noise of its own.
        size: shorter side in pixels at which the model sees images; a larger image is first scaled down to it.

    Returns:
        An RGB image whose shorter side is at most `size`.

    Raises:
        ValueError: an unknown corruption, a severity other than 1, 2, 3, or a size below 1.
    """
    check_choice("corruption", corruption, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ValueError(f"`severity` is {severity}: it must be one of {SEVERITIES}.")
    if size < 1:
        raise ValueError(f"`size` is {size}: give the shorter side in pixels, at least 1.")
    image = to_rgb(image)
    if (shorter := min(image.size)) > size:
        width, height = (max(1, int(size * side / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    function, strengths = _CORRUPTIONS[corruption]
    digest = hashlib.sha256(f"{seed}/{key}/{corruption}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return function(image, strengths[severity - 1], min(image.size) / REFERENCE_SIDE, rng)


def _pixelwise(function: Callable[..., np.ndarray]) -> Callable[..., Image.Image]:
    """A corruption from a function of pixels [H, W, 3] in [0, 1] to pixels, which may leave [0, 1]."""

    def corruption(image: Image.Image, strength: float, scale: float, rng: np.random.Generator) -> Image.Image:
        pixels = function(np.asarray(image) / 255, strength, scale, rng)
        return Image.fromarray(np.rint(255 * pixels.clip(0, 1)).astype(np.uint8))

    return corruption


def _gaussian_noise(pixels: np.ndarray, deviation: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    return pixels + deviation * math.sqrt(scale) * rng.standard_normal(pixels.shape)


def _shot_noise(pixels: np.ndarray, photons: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(pixels * photons / scale) * scale / photons


def _impulse_noise(pixels: np.ndarray, part: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(pixels.shape) < part * math.sqrt(scale), rng.random(pixels.shape) < 0.5, pixels)


def _brightness(pixels: np.ndarray, amount: float, *_) -> np.ndarray:
    return pixels + amount


def _contrast(pixels: np.ndarray, factor: float, *_) -> np.ndarray:
    mean = pixels.mean(axis=(0, 1))
    return mean + factor * (pixels - mean)


def _gaussian_blur(image: Image.Image, radius: float, scale: float, *_) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius * scale))


def _pixelate(image: Image.Image, factor: float, *_) -> Image.Image:
    coarse = image.resize([max(1, round(factor * side)) for side in image.size], Image.Resampling.BOX)
    return coarse.resize(image.size, Image.Resampling.NEAREST)


def _jpeg(image: Image.Image, quality: float, scale: float, *_) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, format="JPEG", quality=min(95, round(quality / math.sqrt(scale))))
    return Image.open(stored).convert("RGB")


# function (image, strength, shorter side / 224, generator) -> image, and its strength at each severity
_CORRUPTIONS: dict[str, tuple[Callable[..., Image.Image], tuple[float, float, float]]] = {
    "gaussian_noise": (_pixelwise(_gaussian_noise), (0.08, 0.18, 0.38)),  # standard deviation
    "shot_noise": (_pixelwise(_shot_noise), (60, 12, 3)),  # photons of white
    "impulse_noise": (_pixelwise(_impulse_noise), (0.03, 0.09, 0.27)),  # part of the values that become 0 or 1
    "gaussian_blur": (_gaussian_blur, (1, 3, 6)),  # standard deviation in pixels
    "brightness": (_pixelwise(_brightness), (0.1, 0.3, 0.5)),  # added
    "contrast": (_pixelwise(_contrast), (0.4, 0.2, 0.05)),  # what is left of it
    "pixelate": (_pixelate, (0.6, 0.4, 0.25)),  # pixels left on each side
    "jpeg": (_jpeg, (25, 15, 7)),  # Pillow's quality
}
CORRUPTIONS = tuple(_CORRUPTIONS)
