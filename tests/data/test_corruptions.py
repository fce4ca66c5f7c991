from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jscpt_peft.data import ImageTaskDataset, image_transform, read_column, shapes_task_set, to_rgb
from jscpt_peft.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise")


def picture(width=120, height=90):
    """Gradients, edges, waves and no value at the ends of the scale: all that the corruptions work on."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [60 + 100 * columns / width, 60 + 100 * rows / height, 120 + 60 * np.sin(columns / 8)]
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse([width // 4, height // 4, width // 2, height // 2], fill=(200, 40, 40))
    return image


def values(image):
    return np.asarray(image, dtype=float) / 255


def difference(one, other):
    return np.sqrt(((values(one) - values(other)) ** 2).mean())


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("size", [(64, 64), (300, 224)])
def test_error_grows_with_severity(corruption, size):
    clean = picture(*size)
    errors = [difference(clean, corrupt(clean, corruption, severity, seed=1, key="a")) for severity in SEVERITIES]
    assert 0.003 < errors[0] < 0.95 * errors[1] < 0.9 * errors[2]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_is_a_pure_function_of_its_arguments(corruption):
    clean = picture()
    before = clean.tobytes()
    first = corrupt(clean, corruption, 2, seed=1, key="a").tobytes()
    np.random.seed(5)  # the global generator must not matter
    assert corrupt(clean, corruption, 2, seed=1, key="a").tobytes() == first
    assert clean.tobytes() == before
    others = [corrupt(clean, corruption, 2, **changed).tobytes() for changed in ({"seed": 2}, {"seed": 1, "key": "b"})]
    drawn = corruption in (*NOISES, "motion_blur", "fog")
    assert [other != first for other in others] == [drawn, drawn]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_is_that_of_its_rgb_image(corruption, mode):
    image = picture().convert("L").convert(mode) if mode in ("I;16", "F") else picture().convert(mode)
    corrupted = corrupt(image, corruption, 3)
    assert corrupted.mode == "RGB"
    assert corrupted.tobytes() == corrupt(to_rgb(image), corruption, 3).tobytes()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (7, 90)])
def test_tiny_pictures(corruption, size):
    for colour in ("black", "white", (10, 200, 30)):
        for severity in SEVERITIES:
            assert corrupt(Image.new("RGB", size, colour), corruption, severity).size == size


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_large_pictures_are_corrupted_at_the_size_the_model_sees(corruption):
    large = picture(900, 600)
    corrupted = corrupt(large, corruption, 2, key="a", size=64)
    assert corrupted.size == (96, 64)
    assert corrupted.tobytes() == corrupt(large.resize((96, 64), 3), corruption, 2, key="a", size=64).tobytes()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_stated_strength(severity):
    grey = Image.new("RGB", (224, 224), (128, 128, 128))
    level, pixels = 128 / 255, {name: values(corrupt(grey, name, severity)) for name in NOISES}
    deviation = (0.08, 0.18, 0.38)[severity - 1]
    if severity < 3:  # the strongest is cut at black and white
        assert pixels["gaussian_noise"].std() == pytest.approx(deviation, rel=0.03)
        photons = (60, 12)[severity - 1]
        assert pixels["shot_noise"].std() == pytest.approx(np.sqrt(level / photons), rel=0.05)
    hit = np.abs(pixels["impulse_noise"] - level) > 0.1
    assert hit.mean() == pytest.approx((0.03, 0.09, 0.27)[severity - 1], rel=0.05)
    assert set(pixels["impulse_noise"][hit]) == {0.0, 1.0}


def test_blur_keeps_the_mean_and_spreads_a_point_as_far_as_stated():
    point = Image.new("RGB", (225, 225))
    point.putpixel((112, 112), (255, 255, 255))
    rows, columns = np.mgrid[0:225, 0:225] - 112
    for severity, radius in zip(SEVERITIES, (3, 6, 10), strict=True):
        disk = values(corrupt(point, "defocus_blur", severity, size=225))[..., 0] > 0
        assert np.abs(disk.sum() - np.pi * (radius + 0.5) ** 2) < 0.2 * disk.sum()
        assert np.hypot(rows, columns)[disk].max() == pytest.approx(radius, abs=1)
    for severity, length in zip(SEVERITIES, (10, 20, 35), strict=True):
        line = values(corrupt(point, "motion_blur", severity, size=225))[..., 0] > 0
        assert 2 * np.hypot(rows, columns)[line].max() == pytest.approx(length, abs=3)
        assert line.sum() < 3 * length
    half = (
        Image.fromarray(np.repeat(np.array([[40, 200]], dtype=np.uint8), 40, axis=1)).convert("RGB").resize((80, 80))
    )
    for name in ("defocus_blur", "motion_blur"):
        assert values(corrupt(half, name, 3)).mean() == pytest.approx(values(half).mean(), abs=0.01)


def test_light_and_storage_do_what_they_say():
    clean = picture()
    assert values(corrupt(clean, "contrast", 2)).mean() == pytest.approx(values(clean).mean(), abs=0.005)
    assert values(corrupt(clean, "contrast", 2)).std((0, 1)) == pytest.approx(
        0.2 * values(clean).std((0, 1)), abs=0.01
    )
    brighter = values(corrupt(clean, "brightness", 1)).max(-1)
    assert brighter == pytest.approx((values(clean).max(-1) + 0.1).clip(max=1), abs=0.005)
    assert corrupt(Image.new("RGB", (5, 5)), "brightness", 1).getpixel((0, 0)) == (26, 26, 26)
    blocks = np.asarray(corrupt(picture(224, 224), "pixelate", 3))
    assert len(np.unique(blocks[:, 0], axis=0)) <= 56  # four rows of pixels are one
    stored = io.BytesIO()
    picture(224, 224).save(stored, format="JPEG", quality=15)
    assert corrupt(picture(224, 224), "jpeg", 2).tobytes() == Image.open(stored).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gausian_noise", 1), "`corruption` must be one of.*Did you mean 'gaussian_noise'"),
        (("fog", 4), "`severity` is 4: it must be one of"),
        (("fog", 1, 0, "", 0), "`size` is 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(picture(), *arguments)


def test_dataset_corrupts_each_picture_by_its_key_before_the_transform():
    tasks = shapes_task_set(tasks=["flat", "chalk"], test_per_class=1)
    transform = image_transform(32, (0.5,) * 3, (0.25,) * 3, train=False)
    seen = []

    def corrupted(image, *, key):
        seen.append(key)
        return corrupt(image, "fog", 2, key=key)

    dataset = ImageTaskDataset(tasks.split("test"), transform, corrupt=corrupted)
    chalk = tasks.tasks[1].test
    pixels = dataset[16 + 3]["pixel_values"]
    key = read_column(chalk, "key")[3]
    assert seen == [key]
    assert pixels.equal(transform(corrupt(chalk[3]["image"], "fog", 2, key=key), None))
