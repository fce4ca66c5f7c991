from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jscpt_peft.data import ImageTaskDataset, image_transform, read_column, shapes_task_set, to_rgb
from jscpt_peft.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

DRAWN = ("gaussian_noise", "shot_noise", "impulse_noise")


def image(width=120, height=90):
    """Gradients, edges, waves and no value at the ends of the scale: all that the corruptions work on."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [60 + 100 * columns / width, 60 + 100 * rows / height, 120 + 60 * np.sin(columns / 8)]
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse([width // 4, height // 4, width // 2, height // 2], fill=(200, 40, 40))
    return image


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_distance_from_the_clean_image_grows_with_severity(corruption):
    for clean in (image(64, 64), image(300, 224)):
        corrupted = [np.asarray(corrupt(clean, corruption, severity, seed=1), float) for severity in SEVERITIES]
        errors = [np.sqrt(((each - np.asarray(clean)) ** 2).mean()) for each in corrupted]
        assert 0.5 < errors[0] < 0.95 * errors[1] < 0.9 * errors[2]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_is_a_pure_function_of_its_arguments(corruption):
    clean = image()
    before = clean.tobytes()
    first = corrupt(clean, corruption, 2, seed=1, key="a").tobytes()
    np.random.seed(5)  # the global generator must not matter
    assert corrupt(clean, corruption, 2, seed=1, key="a").tobytes() == first
    assert clean.tobytes() == before
    for changed in ({"seed": 2, "key": "a"}, {"seed": 1, "key": "b"}):
        assert (corrupt(clean, corruption, 2, **changed).tobytes() != first) == (corruption in DRAWN)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_any_mode_and_size(corruption):
    for mode in ("1", "P", "RGBA", "CMYK", "I;16"):
        given = image().convert("L").convert(mode) if mode == "I;16" else image().convert(mode)
        corrupted = corrupt(given, corruption, 3)
        assert (corrupted.mode, corrupted.size) == ("RGB", given.size)
        assert corrupted.tobytes() == corrupt(to_rgb(given), corruption, 3).tobytes()
    for size in [(1, 1), (1, 40), (3, 2)]:
        for colour in ("black", "white"):
            assert corrupt(Image.new("RGB", size, colour), corruption, 3).size == size
    # a large image is corrupted at the size at which the model sees it
    large = image(900, 600)
    expected = corrupt(large.resize((96, 64), Image.Resampling.BICUBIC), corruption, 2, size=64)
    assert corrupt(large, corruption, 2, size=64).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gausian_noise", 1), "`corruption` must be one of.*Did you mean 'gaussian_noise'"),
        (("jpeg", 4), "`severity` is 4: it must be one of"),
        (("jpeg", 1, 0, "", 0), "`size` is 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(image(), *arguments)


def test_a_dataset_corrupts_each_image_by_its_key_before_the_transform():
    tasks = shapes_task_set(tasks=["flat", "chalk"], test_per_class=1)
    transform = image_transform(32, (0.5,) * 3, (0.25,) * 3, train=False)

    def corrupted(image, *, key):
        return corrupt(image, "shot_noise", 2, key=key)

    dataset = ImageTaskDataset(tasks.split("test"), transform, corrupt=corrupted)
    chalk = tasks.tasks[1].test
    expected = corrupted(chalk[3]["image"], key=read_column(chalk, "key")[3])
    assert dataset[16 + 3]["pixel_values"].equal(transform(expected, None))
