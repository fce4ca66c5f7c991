from __future__ import annotations

import pickle
import random

import pytest
from PIL import ImageChops, ImageStat

from jscpt_peft.data.drawing import BACKGROUNDS, STYLES, draw_scene, sample_scene
from jscpt_peft.data.outlines import OUTLINES
from jscpt_peft.data.shapes import CLASS_NAMES, aligned_background, shapes_task_set
from jscpt_peft.data.task import SPLITS, read_column

SMALL = {"shots": 2, "validation_per_class": 1, "dev_per_class": 1, "test_per_class": 2}


def test_default_set_has_four_styles_and_is_small():
    task_set = shapes_task_set()
    assert [task.name for task in task_set] == list(STYLES)
    for task_id, task in enumerate(task_set):
        assert task.class_names == CLASS_NAMES
        assert [len(task.split(split)) / 16 for split in SPLITS] == [16, 4, 4, 25]
        assert set(read_column(task.train, "task_id")) == {task_id}
        # training is biased, nothing else
        assert aligned_share(task.train) > 0.5 > max(aligned_share(task.test), aligned_share(task.dev))
    row = task_set.tasks[2].test[5]
    assert (row["image"].mode, row["image"].size, row["label"], row["task_id"]) == ("RGB", (64, 64), 5, 2)
    assert row["group"] in (0, 1)


def test_an_image_is_a_function_of_seed_task_split_and_index():
    def image(seed, task, split, index):
        (only,) = shapes_task_set(seed=seed, tasks=[task], **SMALL)
        return only.split(split)[index]["image"].tobytes()

    state = random.getstate()
    first = image(1, "flat", "train", 3)
    assert random.getstate() == state
    random.seed(1)  # no global state may matter
    assert image(1, "flat", "train", 3) == first
    others = [(2, "flat", "train", 3), (1, "outline", "train", 3), (1, "flat", "test", 3), (1, "flat", "train", 19)]
    assert len({first, *(image(*each) for each in others)}) == 5


def test_fewer_shots_are_a_subset_and_other_splits_stay():
    few, many = shapes_task_set(**SMALL), shapes_task_set(**{**SMALL, "shots": 4})
    for task_few, task_many in zip(few, many, strict=True):
        keys = read_column(task_many.train, "key")
        assert read_column(task_few.train, "key") == keys[: len(task_few.train)]
        assert read_column(task_few.test, "key") == read_column(task_many.test, "key")
        assert many.manifest["tasks"][task_many.name]["train"] == keys
        assert task_few.train[7]["image"].tobytes() == task_many.train[7]["image"].tobytes()


@pytest.mark.parametrize("style", STYLES)
def test_every_class_can_be_told_from_every_other(style):
    """Same place, size, colours and background: the images of two classes must differ in many pixels."""
    images = [draw_scene(sample_scene("same", shape, style, "plain", max_clutter=0)) for shape in OUTLINES]
    for number, image in enumerate(images):
        for other in images[:number]:
            difference = ImageChops.difference(image, other).convert("L").point(lambda level: 255 * (level > 25))
            assert ImageStat.Stat(difference).mean[0] / 255 > 0.02


def aligned_share(dataset):
    """Computed from what is drawn, not from `group`."""
    labels = read_column(dataset, "label")
    backgrounds = [scene["background"] for scene in read_column(dataset, "image")]
    aligned = [background == aligned_background(label) for label, background in zip(labels, backgrounds, strict=True)]
    assert read_column(dataset, "group") == [int(one) for one in aligned]
    return sum(aligned) / len(aligned)


def test_spurious_strength_is_the_correlation_by_task_and_by_split():
    strength = {"flat": 1.0, "outline": 0.5, "chalk": {"test": 1.0}}
    task_set = shapes_task_set(shots=60, test_per_class=60, spurious_strength=strength)
    chance = 1 / len(BACKGROUNDS)
    expected = [(1, chance), (0.5 + 0.5 * chance, chance), (chance, 1), (chance, chance)]
    for task, shares in zip(task_set, expected, strict=True):  # 960 images: a standard deviation is below 0.017
        assert [aligned_share(task.train), aligned_share(task.test)] == pytest.approx(shares, abs=0.06)
    assert aligned_share(task_set.tasks[0].train) == aligned_share(task_set.tasks[2].test) == 1


def test_data_sets_survive_pickling_and_selection():
    train = shapes_task_set(**SMALL).tasks[1].train
    copied = pickle.loads(pickle.dumps(train))
    assert copied[3]["image"].tobytes() == train[3]["image"].tobytes()
    assert train.select([4, 9])[1]["image"].tobytes() == train[9]["image"].tobytes()


def test_columns_are_read_without_drawing(monkeypatch):
    def fail(scene):
        raise AssertionError(f"drew {scene}")

    monkeypatch.setattr("jscpt_peft.data.shapes.draw_scene", fail)
    train = shapes_task_set(**SMALL).tasks[0].train
    assert read_column(train, "label") == [*range(16)] * 2
    assert train.select_columns(["label", "group"])[3]["label"] == 3
    with pytest.raises(AssertionError, match="drew"):
        train[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"shots": 0}, "`shots` must be at least 1, got 0"),
        ({"shots": 4, "train_fraction": 0.1}, "`train_fraction` is 0.1"),
        ({"train_fraction": 0.0}, "`train_fraction` must be above 0, got 0.0"),
        ({"test_per_class": 0}, "`test_per_class` is 0"),
        ({"tasks": ["flat", "oil"]}, "`tasks` is"),
        ({"tasks": []}, "`tasks` is"),
        ({"tasks": ["flat", "flat"]}, "`tasks` is"),
        ({"spurious_strength": 1.5}, "is 1.5"),
        ({"spurious_strength": {"oil": 0.5}}, "'oil'"),
        ({"spurious_strength": {"flat": {"training": 0.5}}}, "'training'"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        shapes_task_set(**arguments)
