from __future__ import annotations

import pytest
from paths import RECIPES
from task_data import DataArguments, by_task, load_data

from jscpt_peft.data import load_task_set, read_column, write_manifest
from jscpt_peft.data.manifest import MANIFEST_FILE
from jscpt_peft.data.unequal import with_label_noise, with_shots
from jscpt_peft.training.run_record import data_of


@pytest.fixture(scope="module")
def icons():
    return load_task_set("icons", RECIPES / "assets" / "icons")


def labels(task) -> dict[str, int]:
    return dict(zip(read_column(task.train, "key"), read_column(task.train, "label"), strict=True))


def test_noise_is_of_training_labels_of_the_named_task_alone(icons):
    noisy = with_label_noise(icons, {"solid": 0.7}, seed=1)
    assert noisy.manifest["options"]["label_noise"] == {"solid": 0.7}
    for before, after in zip(icons, noisy, strict=True):
        for split in ("validation", "dev", "test"):
            assert after.split(split) is before.split(split)
        if before.name != "solid":
            assert after.train is before.train
    before, after = labels(icons.tasks[1]), labels(noisy.tasks[1])
    wrong = {key for key in before if before[key] != after[key]}
    assert len(wrong) / len(before) == pytest.approx(0.7, abs=0.06)  # three standard deviations
    assert len({(after[key] - before[key]) % 31 for key in wrong}) == 30
    assert noisy.tasks[1].train[5]["image"].tobytes() == icons.tasks[1].train[5]["image"].tobytes()


def test_noise_is_nested_and_a_function_of_the_seed(icons):
    right = labels(icons.tasks[1])

    def wrong(amount: float, seed: int) -> dict[str, int]:
        noisy = labels(with_label_noise(icons, {"solid": amount}, seed).tasks[1])
        return {key: label for key, label in noisy.items() if label != right[key]}

    few = wrong(0.2, 1)
    assert few.items() < wrong(0.7, 1).items() and few.keys() != wrong(0.2, 2).keys()
    assert len(wrong(1.0, 1)) == 463 and not wrong(0.0, 1)


def test_shots_of_one_task_are_those_of_all(icons):
    few = with_shots(icons, {"colour": 2}, seed=4)
    all_few = load_task_set("icons", RECIPES / "assets" / "icons", shots=2, seed=4)
    assert labels(few.tasks[3]) == labels(all_few.tasks[3]) and len(few.tasks[3].train) == 62
    assert few.tasks[0].train is icons.tasks[0].train
    assert few.manifest["tasks"]["colour"]["train"] == read_column(few.tasks[3].train, "key")


def test_the_command_line_says_it_per_task():
    data = DataArguments("shapes", spurious_strength="flat=0,chalk=0.95", label_noise="chalk=0.7", shots="flat=2")
    task_set = load_data(data, seed=1)
    options = task_set.manifest["options"]
    assert options["label_noise"] == {"chalk": 0.7} and options["shots"] == {"flat": 2}
    strengths = {task: by_split["train"] for task, by_split in options["spurious_strength"].items()}
    assert strengths == {"flat": 0, "outline": 0, "chalk": 0.95, "mosaic": 0}
    assert [len(task.train) for task in task_set] == [32, 256, 256, 256]
    assert "group" in task_set.tasks[0].train.features and task_set.tasks[0].train[0]["image"].size == (64, 64)
    everywhere = load_data(DataArguments("shapes", shots="8", label_noise=0.5), seed=1)
    assert everywhere.manifest["options"]["label_noise"] == dict.fromkeys(task_set.class_names, 0.5)


def test_some_tasks_alone_are_numbered_anew(icons, tmp_path):
    data = DataArguments("icons", only_tasks="colour, solid", label_noise="colour=0.5")
    two = load_data(data, seed=1)
    assert list(two.class_names) == list(two.manifest["tasks"]) == ["solid", "colour"]
    assert [set(read_column(task.test, "task_id")) for task in two] == [{0}, {1}]
    assert read_column(two.tasks[1].test, "key") == read_column(icons.tasks[3].test, "key")
    assert two.tasks[1].test[0]["image"].tobytes() == icons.tasks[3].test[0]["image"].tobytes()
    write_manifest(two.manifest, tmp_path / MANIFEST_FILE)  # from which a resumed run and an evaluation know them
    again = load_data(DataArguments("icons", manifest=str(tmp_path / MANIFEST_FILE)), seed=1)
    assert list(again.class_names) == ["solid", "colour"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only_tasks": "flat,choke"}, "`only_tasks` must be one of .*'choke'. Did you mean 'chalk'"),
        ({"only_tasks": "flat,flat"}, "`only_tasks` names 'flat' twice"),
        ({"only_tasks": "flat", "shots": "chalk=2"}, "`shots` names 'chalk'"),
        ({"shots": "flat=two"}, "`shots` must be one number or task=number"),
        ({"shots": "0"}, "`shots` must be at least 1"),
        ({"label_noise": "chalk=1.5"}, r"`label_noise\['chalk'\]` must be at most 1"),
        ({"label_noise": "chalk=0.5,chalk=0.7"}, "names a task twice"),
        ({"label_noise": "chlak=0.5"}, "`label_noise` names 'chlak'.*chalk"),
        ({"shots": "flat=2", "train_fraction": 0.5}, "at most one"),
    ],
)
def test_wrong_words_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        load_data(DataArguments("shapes", **options), seed=1)


def test_task_names_may_hold_an_equals_sign():
    assert by_task("shots", "a=b=2, c = 3", int) == {"a=b": 2, "c": 3}


def test_the_record_of_a_run_tells_it(icons, tmp_path):
    unequal = with_label_noise(with_shots(icons, {"colour": 2}, seed=1), {"solid": 0.7}, seed=1)
    write_manifest(unequal.manifest, tmp_path / MANIFEST_FILE)
    sizes = {task.name: len(task.train) for task in unequal}
    _, rows = data_of(tmp_path, sizes)
    expected = "all training images, but 2 of each class in colour; wrong labels: 70 % in solid"
    assert rows["icons"][1] == expected
