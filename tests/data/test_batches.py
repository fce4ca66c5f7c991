from __future__ import annotations

import math
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from jscpt_peft.data import (
    SPLITS,
    ImageTaskDataset,
    TaskBalancedBatchSampler,
    collate,
    image_transform,
    shapes_task_set,
)
from jscpt_peft.data.found import FilesOnDisk, RowsOfTables, build_task

SIZES = (5, 23, 12)
STARTS = (0, 5, 28, 40)
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PLAIN = image_transform(8, **IDENTITY, train=False)


def task_of(index):
    return next(task for task in range(3) if index < STARTS[task + 1])


@pytest.fixture
def splits(tmp_path):
    """Two tasks of 4 and 3 images, each of one grey level of its own, with groups."""
    built = []
    for task_id, size in enumerate((4, 3)):
        paths = []
        for number in range(size):
            paths.append(str(tmp_path / f"{task_id}-{number}.png"))
            pixels = np.random.default_rng(10 * task_id + number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(paths[-1])
        columns = {
            "image": paths,
            "label": list(range(size)),
            "task_id": [task_id] * size,
            "group": [7 + number for number in range(size)],
            "key": paths,
        }
        built.append(datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()))
    return built


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_every_batch_has_as_many_items_of_every_task(batch_size):
    sampler = TaskBalancedBatchSampler(SIZES, batch_size)
    batches = list(sampler)
    assert len(batches) == len(sampler) == math.ceil(23 / batch_size)
    for batch in batches:
        assert [task_of(index) for index, _ in batch] == sorted([0, 1, 2] * batch_size)


def test_an_epoch_is_one_pass_over_the_largest_task_and_cycles_the_others():
    counts = Counter(index for batch in TaskBalancedBatchSampler(SIZES, 1) for index, _ in batch)
    assert [counts[index] for index in range(5, 28)] == [1] * 23
    assert {counts[index] for index in range(0, 5)} == {4, 5}  # 23 draws of 5 items
    assert {counts[index] for index in range(28, 40)} == {1, 2}
    beyond = [index for number in range(10) for index, _ in TaskBalancedBatchSampler((4,), 2).batch(number)]
    assert Counter(beyond) == Counter({index: 5 for index in range(4)})
    filled = Counter(index for batch in TaskBalancedBatchSampler(SIZES, 4) for index, _ in batch)
    assert sum(filled[index] - 1 for index in range(5, 28)) == 1  # 6 batches of 4 hold 23 items and one more


def test_short_tasks_are_reshuffled_in_every_cycle_and_all_tasks_in_every_epoch():
    sampler = TaskBalancedBatchSampler(SIZES, 1)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([batch[0][0] for batch in sampler])
    cycles = [tuple(epoch[start : start + 5]) for epoch in epochs for start in (0, 5, 10, 15)]
    assert all(sorted(cycle) == [0, 1, 2, 3, 4] for cycle in cycles)
    assert len(set(cycles)) >= 7  # 8 draws out of 120 orders


def test_the_ranks_together_take_what_one_process_with_all_their_images_takes():
    alone = TaskBalancedBatchSampler(SIZES, 3 * 4, seed=3)
    ranks = [TaskBalancedBatchSampler(SIZES, 4, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for epoch in (0, 5):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        assert {len(sampler) for sampler in ranks} == {len(alone)}
        for whole, *parts in zip(alone, *ranks, strict=True):
            assert sorted(key for part in parts for key in part) == sorted(whole)


def test_a_batch_is_a_pure_function_of_seed_epoch_and_number():
    sampler = TaskBalancedBatchSampler(SIZES, 4, seed=1)
    sampler.set_epoch(2)
    resumed = TaskBalancedBatchSampler(SIZES, 4, seed=1)
    resumed.set_epoch(2)
    batches = list(sampler)
    draws = [(task_of(index), draw) for epoch in range(3) for n in range(6) for index, draw in sampler.batch(n, epoch)]
    assert len(set(draws)) == len(draws) == 3 * 3 * 6 * 4  # each is drawn once in the run
    assert [resumed.batch(number, epoch=2) for number in (5, 3, 0)] == [batches[5], batches[3], batches[0]]
    assert list(resumed) == batches
    assert list(TaskBalancedBatchSampler(SIZES, 4, seed=2)) != list(TaskBalancedBatchSampler(SIZES, 4, seed=1))


def test_a_set_epoch_while_iterating_counts_from_the_next_iteration_on():
    sampler = TaskBalancedBatchSampler(SIZES, 4)
    expected, iterator = list(sampler), iter(sampler)
    first = next(iterator)
    sampler.set_epoch(1)
    assert [first, *iterator] == expected != list(sampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [], "batch_size": 1}, r"`sizes` is \[\]"),
        ({"sizes": [3, 0], "batch_size": 1}, r"`sizes` is \[3, 0\]"),
        ({"sizes": [3], "batch_size": 0}, "`batch_size` is 0"),
        ({"sizes": [3], "batch_size": 1, "rank": 2, "world_size": 2}, "`rank` is 2"),
    ],
)
def test_a_bad_sampler_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskBalancedBatchSampler(**arguments)


def test_items_are_those_of_the_concatenation(splits):
    data = ImageTaskDataset(splits, PLAIN)
    assert len(data) == 7
    for index, (task, number) in enumerate([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]):
        item = data[index]
        assert (item["task_ids"], item["labels"], item["groups"]) == (task, number, 7 + number)
        assert torch.equal(item["pixel_values"], PLAIN(splits[task][number]["image"]))
    assert len(list(data)) == 7
    for index in (7, -1):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 7 images"):
            data[index]


def test_groups_are_given_for_all_tasks_or_none(splits):
    without = [split.remove_columns("group") for split in splits]
    assert set(ImageTaskDataset(without, PLAIN)[0]) == {"pixel_values", "labels", "task_ids"}
    with pytest.raises(ValueError, match="`datasets` number 1 has no column `group`, number 0 has"):
        ImageTaskDataset([splits[0], without[1]], PLAIN)


def test_class_names_come_with_the_labels_or_are_given(splits):
    assert ImageTaskDataset(splits, PLAIN).class_names == (None, None)
    named = [
        split.cast_column("label", datasets.ClassLabel(names=list(names)))
        for split, names in zip(splits, ("abcd", "xyz"), strict=True)
    ]
    own = ImageTaskDataset(named, PLAIN)
    assert (own.class_names, own.task_names) == ((list("abcd"), list("xyz")), None)
    given = ImageTaskDataset(splits, PLAIN, class_names={"art": list("abcd"), "clipart": list("xyz")})
    assert (given.class_names, given.task_names) == (own.class_names, ("art", "clipart"))
    assert ImageTaskDataset(splits, PLAIN, class_names=[None, list("xyz")]).class_names == (None, list("xyz"))
    task_set = shapes_task_set(shots=1, test_per_class=1, tasks=["flat"])
    assert ImageTaskDataset(task_set.split("test"), PLAIN).class_names == (task_set.class_names["flat"],)
    for wrong, message in (
        ([list("abcd")], "`class_names` has 1 lists for 2 data sets"),
        ([list("abcd"), list("yxz")], "'number 1' are not those of its data set \\(label 0 is 'y' instead of 'x'"),
        ([list("abcd"), list("xy")], "2 classes instead of 3"),
        ([["a", "a"], None], "holds 'a' more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageTaskDataset(named, PLAIN, class_names=wrong)
    with pytest.raises(TypeError, match="holds 3 of type int: names are strings"):
        ImageTaskDataset(splits, PLAIN, class_names={3: list("abcd"), "b": list("xyz")})


def test_augmentation_is_a_pure_function_of_seed_and_key(splits):
    transform = image_transform(8, **IDENTITY, train=True)
    data, same, other = (ImageTaskDataset(splits, transform, seed=seed) for seed in (1, 1, 2))
    views = [data[(0, draw)]["pixel_values"] for draw in range(4)]
    assert all(torch.equal(view, same[(0, draw)]["pixel_values"]) for draw, view in enumerate(views))
    assert not any(torch.equal(views[0], view) for view in views[1:])
    assert not torch.equal(views[0], other[(0, 0)]["pixel_values"])
    assert torch.equal(data[0]["pixel_values"], views[0])


def test_collate_stacks(splits):
    data = ImageTaskDataset(splits, PLAIN)
    batch = collate([data[1], data[6]])
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((2, 3, 8, 8), torch.float32)
    for name, expected in {"labels": [1, 2], "task_ids": [0, 1], "groups": [8, 9]}.items():
        assert (batch[name].dtype, batch[name].tolist()) == (torch.int64, expected)


def test_workers_give_exactly_the_images_of_the_main_process(splits):
    data = ImageTaskDataset(splits, image_transform(8, **IDENTITY, train=True), seed=4)
    sampler = TaskBalancedBatchSampler([4, 3], 2, seed=4)
    alone, shared = (
        list(DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=workers)) for workers in (0, 2)
    )
    assert len(alone) == len(shared) == 2
    for one, two in zip(alone, shared, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_unreadable_image_is_named_when_it_is_read(tmp_path, splits):
    whole = (tmp_path / "0-1.png").read_bytes()
    broken = {
        "truncated": whole[: len(whole) // 2],
        "no image": b"hello",
        "empty": b"",
        "flipped": whole[:200] + bytes(255 - byte for byte in whole[200:400]) + whole[400:],
    }
    data = ImageTaskDataset(splits, PLAIN)
    for name, content in broken.items():
        (tmp_path / "0-1.png").write_bytes(content)
        with pytest.raises(OSError, match=r"image '.*0-1\.png' cannot be read .* `skip_bad_images=True`"):
            data[1]
            pytest.fail(name)
    (tmp_path / "0-1.png").unlink()
    with pytest.raises(OSError, match=r"image '.*0-1\.png' cannot be read"):
        next(iter(DataLoader(data, batch_sampler=[[0, 1]], collate_fn=collate, num_workers=1)))
    assert data[0]["labels"] == 0


JPEG_SIZES = {None: (320, 240), 64: (160, 120)}


def tables_of_jpegs(folder) -> dict[str, datasets.Dataset]:
    """One image of 320 by 240 pixels as each kind of data set holds it."""
    path = folder / "photos" / "art" / "train" / "cat" / "1.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (320, 240), "teal").save(path)
    stored = {"image": [{"bytes": path.read_bytes(), "path": None}], "label": [0], "task_id": [0], "key": ["train/0"]}
    plain = datasets.Dataset.from_dict(stored).cast_column("image", datasets.Image())
    rows = RowsOfTables({"train": plain.cast_column("image", datasets.Image(decode=False))}, {})
    found = {"a row": (rows, "train/0"), "a file": (FilesOnDisk(path.parent), path.name)}
    built = {
        name: build_task(0, "art", {split: {"cat": [key]} for split in SPLITS}, images).train
        for name, (images, key) in found.items()
    }
    return {"a table of images": plain, **built}


def test_jpegs_are_decoded_at_a_reduced_size_from_wherever_they_come(tmp_path):
    for name, table in tables_of_jpegs(tmp_path).items():
        for side, size in JPEG_SIZES.items():
            seen = []
            images = ImageTaskDataset([table], lambda image, _: seen.append(image.size), jpeg_side=side)  # noqa: B023
            assert images[0]["labels"] == 0 and seen == [size], name
        assert table[0]["image"].size == (320, 240), name
