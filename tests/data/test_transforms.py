from __future__ import annotations

import pickle
import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from jscpt_peft.data import image_transform, to_rgb

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image, path, **options):
    """`image` as it comes out of a data set after a round trip through a file."""
    image.save(path, **options)
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [str(path)]}, features=features)[0]["image"]


MODES = ["RGB", "RGBA", "LA", "P", "L", "1", "CMYK"]  # the processor overlooks the alpha values of a palette


@pytest.mark.parametrize("size", [32, 33, 224])
@pytest.mark.parametrize(
    ("shape", "mode"),
    [*zip([(64, 64), (100, 37), (37, 100), (500, 333), (225, 224), (10, 7), (1, 9)], MODES, strict=True)],
)
def test_test_transform_equals_the_clip_processor(size, shape, mode):
    image = Image.fromarray(noise(*shape, 3 if mode in ("RGB", "P") else 4)).convert(mode)
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    expected = torch.as_tensor(np.array(processor(image)["pixel_values"][0]))
    actual = image_transform(size, MEAN, STD, train=False)(image, None)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation, suffix, tmp_path):
    # a red top-left and a green top-right quarter on blue show any turn and any mirroring
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :, 2] = 255
    pixels[:16, :24] = (255, 0, 0)
    pixels[:16, 24:] = (0, 255, 0)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(pixels)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"turned.{suffix}"
    from_data_set = to_rgb(saved(stored, path, exif=exif))
    with Image.open(path) as opened:
        for image in (from_data_set, to_rgb(opened), to_rgb(to_rgb(opened))):
            assert np.abs(np.asarray(image, np.int16) - pixels)[4:12, 4:20].max() < 40  # lossy formats
            assert np.abs(np.asarray(image, np.int16) - pixels)[4:12, 28:44].max() < 40
            assert np.abs(np.asarray(image, np.int16) - pixels)[20:28].max() < 40


def test_sixteen_bit_greyscale_keeps_its_levels(tmp_path):
    levels = noise(16, 16, 1)
    deep = levels.astype(np.uint16) * 257
    images = {
        "png": saved(Image.fromarray(deep), tmp_path / "deep.png"),
        "tif": saved(Image.fromarray(deep), tmp_path / "deep.tif"),
        "I;16B": saved(Image.fromarray(deep.astype(">u2")), tmp_path / "big.tif"),
        "I": Image.fromarray(deep.astype(np.int32)),
        "F, 16 bits": Image.fromarray(deep.astype(np.float32)),
        "I, 8 bits": Image.fromarray(levels.astype(np.int32)),
        "F, 8 bits": saved(Image.fromarray(levels.astype(np.float32)), tmp_path / "float.tif"),
        "F, unit": Image.fromarray(levels.astype(np.float32) / 255),
    }
    assert images["png"].mode.startswith("I")
    for name, image in images.items():
        result = np.asarray(to_rgb(image))
        assert np.array_equal(result, np.repeat(levels[:, :, None], 3, axis=2)), name


def test_greyscale_of_an_unknown_range_is_stretched():
    levels = np.array([[-10.0, 110.0, 190.0, np.nan]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 153, 255, 13]
    assert np.asarray(to_rgb(Image.fromarray(np.full((2, 2), -3, np.int32)))).max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode, tmp_path):
    grey = np.full((1, 3), 100, np.uint8)
    alpha = np.array([[0, 51, 255]], np.uint8)
    bands = [Image.fromarray(grey)] * (len(mode) - 1) + [Image.fromarray(alpha)]
    image = saved(Image.merge(mode, bands), tmp_path / "alpha.png")
    assert image.mode == mode
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 224, 100]  # 0.8 * 255 + 0.2 * 100


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palette_is_laid_over_white(suffix, tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image = saved(image, tmp_path / f"palette.{suffix}", transparency=1)
    white = [255, 255, 255]
    assert np.asarray(to_rgb(image))[0].tolist() == [[10, 20, 30], white, [70, 80, 90], white]


def test_alpha_in_the_palette_is_laid_over_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 255, 40, 50, 60, 0], rawmode="RGBA")
    assert np.asarray(to_rgb(image))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_training_transform_depends_on_the_generator_alone():
    transform = image_transform(32, MEAN, STD, train=True)
    image = Image.fromarray(noise(60, 45))
    random.seed(0)
    first = transform(image, random.Random("a"))
    random.seed(1)
    assert torch.equal(first, transform(image, random.Random("a")))
    assert not torch.equal(first, transform(image, random.Random("b")))
    assert torch.equal(first, pickle.loads(pickle.dumps(transform))(image, random.Random("a")))  # as a worker has it
    assert first.shape == (3, 32, 32)
    with pytest.raises(ValueError, match="`rng` is None"):
        transform(image, None)


def test_half_of_the_training_views_are_flipped():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
    transform = image_transform(8, **IDENTITY, train=True)
    flips = sum(
        bool(view[0, 0, 0] > view[0, 0, -1]) for view in (transform(ramp, random.Random(s)) for s in range(400))
    )
    assert 160 < flips < 240  # 4 standard deviations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, MEAN, STD, True), "`image_size` must be at least 1, got 0"),
        ((32, (0.5,), STD, True), "`mean` is"),
        ((32, MEAN, (), True), "`std` is"),
        ((32, MEAN, STD, True, 0), "`smallest_crop` must be above 0, got 0"),
        ((32, MEAN, STD, True, 1.1), "`smallest_crop` must be at most 1, got 1.1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_transform(*arguments)


@pytest.mark.parametrize("smallest", [0.08, 0.6])
def test_crops_keep_at_least_the_smallest_part(smallest):
    """Seen from the image: columns and rows count up, so that the corners tell which part was kept."""
    side = 100
    ramp = np.zeros((side, side, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(side)[None], np.arange(side)[:, None]
    transform = image_transform(64, (0, 0, 0), (1, 1, 1), train=True, smallest_crop=smallest)
    parts = []
    for seed in range(200):
        pixels = transform(Image.fromarray(ramp), random.Random(seed)) * 255
        width, height = (pixels[channel].max() - pixels[channel].min() for channel in (0, 1))
        parts.append(float(width * height) / side**2)
    assert smallest * 0.8 < min(parts) < smallest * 1.6
