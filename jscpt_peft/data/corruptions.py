"""Common corruptions of pictures at three severities, to measure how well a classifier bears them.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
2019, arXiv:1903.12261): those of their corruptions that Pillow and numpy can do, with the strengths of their
severities 1, 3 and 5 at 224 pixels. Three are our own imitations: `motion_blur` is a straight line of even weight
(theirs fades out), `fog` a sum of smooth random octaves (theirs is a plasma fractal) with the strengths of their Tiny
ImageNet-C, and `pixelate` has plain squares. Accuracies under them cannot be compared with published ones.

A picture is corrupted at the size at which the model sees it: of a large one the model's own downscaling would average
the corruption away. A smaller one keeps its size. Lengths (blur) scale with that size. What is drawn for each pixel
(noise, JPEG's quantisation) scales with its square root, as less is averaged out over the same part of a smaller
picture: at 64 pixels that comes close to what the authors chose for their Tiny ImageNet-C.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from jscpt_peft.choices import check_choice
from jscpt_peft.data.transforms import to_rgb

SEVERITIES = (1, 2, 3)
REFERENCE_SIDE = 224
"""Shorter side in pixels that the strengths below belong to."""

Corruption = Callable[[np.ndarray, float, float, np.random.Generator], np.ndarray]
"""(pixels [H, W, 3] in [0, 1], strength, shorter side / 224, generator) -> pixels, which may leave [0, 1]."""


def corrupt(
    image: Image.Image, corruption: str, severity: int, seed: int = 0, key: str = "", size: int = REFERENCE_SIDE
) -> Image.Image:
    """`image` corrupted: a pure function of the arguments.

    Args:
        image: in any mode.
        corruption: one of `CORRUPTIONS`.
        severity: 1, 2 or 3.
        seed: of all that is drawn.
        key: what tells the picture from others, so that each gets a noise of its own.
        size: shorter side in pixels at which the model sees pictures; a larger picture is first scaled down to it.

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
    shorter = min(image.size)
    if shorter > size:
        width, height = (max(1, int(size * side / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    function, strengths = _CORRUPTIONS[corruption]
    digest = hashlib.sha256(f"{seed}/{key}/{corruption}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    pixels = np.asarray(image, dtype=np.float64) / 255
    corrupted = function(pixels, strengths[severity - 1], min(image.size) / REFERENCE_SIDE, rng)
    return Image.fromarray(np.rint(255 * corrupted.clip(0, 1)).astype(np.uint8))


# ---- noise: strengths per pixel -------------------------------------------------------------------------------------


def _gaussian_noise(pixels: np.ndarray, deviation: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    return pixels + deviation * math.sqrt(scale) * rng.standard_normal(pixels.shape)


def _shot_noise(pixels: np.ndarray, photons: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """As when white is only so many photons: the fewer, the more their number varies (as its own square root)."""
    photons = photons / scale
    return rng.poisson(photons * pixels) / photons


def _impulse_noise(pixels: np.ndarray, amount: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: a part `amount` of all values becomes 0 or 1."""
    hit, salt = rng.random(pixels.shape) < min(1.0, amount * math.sqrt(scale)), rng.random(pixels.shape) < 0.5
    return np.where(hit, salt, pixels)


# ---- blur: strengths are lengths in pixels at the reference size ----------------------------------------------------


def _defocus_blur(pixels: np.ndarray, radius: float, scale: float, _rng: np.random.Generator) -> np.ndarray:
    """Every point becomes a disk."""
    radius *= scale
    reach = math.ceil(radius)
    offsets = np.arange(-reach, reach + 1)
    disk = (radius + 0.5 - np.hypot(offsets[:, None], offsets)).clip(0, 1)  # about how much of a pixel it covers
    return _convolve(pixels, disk)


def _motion_blur(pixels: np.ndarray, length: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Every point becomes a line at a random angle within 45 degrees of the horizontal."""
    length, angle = length * scale, rng.uniform(-math.pi / 4, math.pi / 4)
    reach = math.ceil(length / 2) + 1
    line = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step in np.linspace(-length / 2, length / 2, 8 * reach + 1):
        # A point between pixels is shared among the four around it.
        row, column = reach + step * math.sin(angle), reach + step * math.cos(angle)
        top, left = int(row), int(column)
        down, right = row - top, column - left
        line[top : top + 2, left : left + 2] += np.outer((1 - down, down), (1 - right, right))
    return _convolve(pixels, line)


def _convolve(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Pixels [H, W, 3] under a kernel [2r + 1, 2r + 1] of any sum, mirrored at the borders."""
    reach = len(kernel) // 2
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    shape = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel / kernel.sum(), shape)[..., None]
    return np.fft.irfft2(spectrum, shape, axes=(0, 1))[2 * reach :, 2 * reach :]


# ---- weather, light and storage -------------------------------------------------------------------------------------


def _fog(pixels: np.ndarray, amount: float, _scale: float, rng: np.random.Generator) -> np.ndarray:
    """Bright clouds of all sizes lie over the picture, whose brightest value stays what it was."""
    height, width, _ = pixels.shape
    clouds = np.zeros((height, width))
    for octave in range(1, 6):
        coarse = Image.fromarray(rng.random((2**octave, 2**octave), dtype=np.float32))
        clouds += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    clouds = (clouds - clouds.min()) / max(clouds.max() - clouds.min(), 1e-6)
    brightest = pixels.max()
    return (pixels + amount * clouds[..., None]) * brightest / (brightest + amount)


def _brightness(pixels: np.ndarray, amount: float, _scale: float, _rng: np.random.Generator) -> np.ndarray:
    """Adds to the value of hue, saturation and value; black, which has no hue, becomes grey."""
    value = pixels.max(axis=2, keepdims=True)
    brighter = (value + amount).clip(max=1)
    return np.where(value > 0, pixels * brighter / np.maximum(value, 1e-6), brighter)


def _contrast(pixels: np.ndarray, factor: float, _scale: float, _rng: np.random.Generator) -> np.ndarray:
    mean = pixels.mean(axis=(0, 1))
    return mean + factor * (pixels - mean)


def _pixelate(pixels: np.ndarray, factor: float, _scale: float, _rng: np.random.Generator) -> np.ndarray:
    """Squares of one colour, 1 / `factor` pixels wide at every size."""
    image = _to_image(pixels)
    coarse = image.resize([max(1, round(factor * side)) for side in image.size], Image.Resampling.BOX)
    return np.asarray(coarse.resize(image.size, Image.Resampling.NEAREST)) / 255


def _jpeg(pixels: np.ndarray, quality: float, scale: float, _rng: np.random.Generator) -> np.ndarray:
    stored = io.BytesIO()
    _to_image(pixels).save(stored, format="JPEG", quality=min(95, round(quality / math.sqrt(scale))))
    return np.asarray(Image.open(stored)) / 255


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * pixels).astype(np.uint8))


_CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.18, 0.38)),  # standard deviation
    "shot_noise": (_shot_noise, (60, 12, 3)),  # photons of white
    "impulse_noise": (_impulse_noise, (0.03, 0.09, 0.27)),  # part of the values
    "defocus_blur": (_defocus_blur, (3, 6, 10)),  # radius
    "motion_blur": (_motion_blur, (10, 20, 35)),  # length
    "fog": (_fog, (0.4, 1.0, 2.0)),  # clouds, relative to white
    "brightness": (_brightness, (0.1, 0.3, 0.5)),  # added to the value
    "contrast": (_contrast, (0.4, 0.2, 0.05)),  # what is left of it
    "pixelate": (_pixelate, (0.6, 0.4, 0.25)),  # pixels left on each side
    "jpeg": (_jpeg, (25, 15, 7)),  # Pillow's quality
}
CORRUPTIONS = tuple(_CORRUPTIONS)
