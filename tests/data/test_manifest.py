"""What a manifest says of how its images were drawn, and how two of them are compared."""

from __future__ import annotations

import json

import pytest

from jscpt_peft.data import read_manifest
from jscpt_peft.data.manifest import drawn_by, on_hub, seen_in_training

SPLITS = ("train", "validation", "dev", "test")


def manifest(tasks, task_set="office_home", seed=1, **options):
    """`tasks`: name -> keys of train, validation, dev and test."""
    named = {task: dict(zip(SPLITS, keys, strict=True)) for task, keys in tasks.items()}
    return {"task_set": task_set, "seed": seed, "options": options, "tasks": named}


def paths(task, *numbers):
    return [f"{task}/cat/{number}.png" for number in numbers]


def test_training_validation_and_dev_images_are_counted_by_task():
    own = manifest({task: [paths(task, 0, 1), paths(task, 2), paths(task, 3), paths(task, 4, 5)] for task in "abc"})
    others = {
        "a": [[], [], [], paths("a", 0, 2, 3, 4)],
        "b": [paths("b", 0), [], [], paths("b", 4)],
        "c": [paths("c", 5), [], [], paths("c", 9)],  # training on what the other tests on is no harm
        "d": [[], [], [], paths("d", 1)],
    }
    assert seen_in_training(own, manifest(others)) == {"a": 3, "b": 0, "c": 0, "d": None}
    elsewhere = manifest({"a": [["other/0.png"], [], [], ["other/1.png"]]})
    assert seen_in_training(own, elsewhere) == {"a": None}


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        ("x/home@1", "x/home@1", {"office_home_clipart": 1, "dtd": 1}),
        ("x/home@1", "x/home@2", {"office_home_clipart": None, "dtd": 1}),
    ],
)
def test_rows_are_compared_within_one_commit(first, second, counts):
    rows = [["train/1"], ["train/2"], ["train/3"], ["train/4"]]
    tasks = {"office_home_clipart": rows, "mini_domainnet_clipart": rows, "dtd": rows}
    sources = {"mini_domainnet": "x/mini@7", "office_home": first, "dtd": "x/dtd@3"}
    own = manifest(tasks, "office_home,mini_domainnet,dtd", sources=sources)
    tested = {"office_home_clipart": [[], [], [], ["train/2"]], "dtd": [[], [], [], ["train/1"]]}
    other = manifest(tested, "office_home,dtd", sources={"office_home": second, "dtd": "x/dtd@3"})
    assert seen_in_training(own, other) == counts


def test_drawn_images_are_known_by_their_keys():
    tasks = {"flat": [["1/flat/train/0"], [], [], ["1/flat/test/0"]]}
    others = {"flat": [["2/flat/train/0"], [], [], ["2/flat/test/0"]]}
    assert seen_in_training(manifest(tasks, "shapes"), manifest(others, "shapes")) == {"flat": 0}
    assert seen_in_training(manifest(tasks, "shapes"), manifest(others, "folder")) == {"flat": None}


@pytest.mark.parametrize(
    ("task_set", "options", "drawn"),
    [
        ("office_home", {"train_fraction": 0.2, "shots": None, "sources": {"office_home": "x"}}, (0.2, None)),
        ("food101", {"train_fraction": None, "shots": 1, "sources": {"food101": "x"}}, (None, 1)),
        ("office_home", {"train_fraction": None, "shots": None, "sources": {"office_home": "x"}}, (0.1, None)),
        ("food101,dtd", {"train_fraction": None, "shots": None, "sources": {"food101": "x", "dtd": "y"}}, (None, 5)),
        ("office_home,dtd", {"sources": {"office_home": "x", "dtd": "y"}}, (None, None)),
        ("shapes", {"images_per_class": {"train": 16, "test": 25}}, (None, 16)),
        ("folder", {"train_fraction": None, "shots": None, "split_seed": 0}, (None, None)),
    ],
)
def test_the_protocol_is_that_of_the_task_set_where_none_was_asked_for(task_set, options, drawn):
    assert drawn_by(manifest({}, task_set, **options)) == drawn


def test_a_manifest_of_the_hub_names_places_there():
    home = "flwrlabs/office-home@d430d44779e929b335be368ab3456484e5de36bb"
    for sources, known in (
        ({"office_home": home}, True),
        ({"office_home": "office_home"}, False),
        ({"office_home": "/data/office_home"}, False),
        ({"office_home": home, "dtd": "dtd"}, False),
        ({"unheard_of": home}, False),
        ({}, True),
    ):
        assert on_hub(manifest({}, sources=sources)) == known


@pytest.mark.parametrize(
    "changes",
    [
        {"options": []},
        {"options": {"sources": ["x"]}},
        {"options": {"sources": {"dtd": 3}}},
        {"options": {"images_per_class": 16}},
        {"tasks": ["a"]},
        {"tasks": {"a": ["a/0.png"]}},
        {"tasks": {"a": {"test": "a/0.png"}}},
        {"tasks": {"a": {"test": [1]}}},
    ],
)
def test_a_file_of_other_content_is_no_manifest(changes, tmp_path):
    right = manifest({"a": [["a/0.png"], [], [], []]}, sources={"dtd": "dtd"})
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(right))
    assert read_manifest(path) == right
    for text, message in [("{", "it is no JSON"), ("[]", "has no 'task_set'"), ('{"task_set": "x"}', "has no 'seed'")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_manifest(path)
    path.write_text(json.dumps({**right, **changes}))
    with pytest.raises(ValueError, match=r"is no list of images by task and split: give a manifest\.json of a run"):
        read_manifest(path)
