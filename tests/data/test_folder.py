from __future__ import annotations

import logging
import os
import shutil

import pytest
from image_folders import flat, save, splits

from jscpt_peft.data import folder_task_set, read_column, read_manifest, write_manifest

SPLITS = ("train", "validation", "dev", "test")


def keys(task_set):
    return {task.name: {split: set(read_column(task.split(split), "key")) for split in SPLITS} for task in task_set}


def test_split_folders_are_kept_and_dev_comes_out_of_validation(tmp_path):
    splits(tmp_path, "art", cat=(4, 4, 3), dog=(3, 2, 1))
    task = folder_task_set(tmp_path).tasks[0]
    found = keys([task])["art"]
    assert {key.split("/")[1] for key in found["train"]} == {"train"}
    assert {key.split("/")[1] for key in found["test"]} == {"test"}
    assert [len(found[split]) for split in SPLITS] == [7, 3, 3, 4]
    shared = found["validation"] | found["dev"]
    assert len(shared) == 6
    assert {key.split("/")[1] for key in shared} == {"validation"}


def test_a_task_without_split_folders_is_partitioned(tmp_path, caplog):
    flat(tmp_path, "art", cat=20, dog=10)
    task = folder_task_set(tmp_path).tasks[0]
    found = keys([task])["art"]
    assert [len(found[split]) for split in SPLITS] == [15, 3, 3, 9]
    assert set.union(*found.values()) == {f"art/cat/{n}.png" for n in range(20)} | {
        f"art/dog/{n}.png" for n in range(10)
    }
    assert read_column(task.test, "label").count(1) == 3
    assert not caplog.records


def test_classes_are_named_after_their_folders_and_may_differ_by_task(tmp_path):
    flat(tmp_path, "b task", **{"light & video": 4, "Postit_Notes": 4})
    splits(tmp_path, "a", names=("train", "val", "test"), **{"only one": (2, 2, 2)})
    flat(tmp_path, "vehicles", train=4, bus=4)  # no split folder: there is none in it
    task_set = folder_task_set(tmp_path)
    assert list(task_set.class_names.items()) == [
        ("a", ["only one"]),
        ("b task", ["Postit Notes", "light & video"]),
        ("vehicles", ["bus", "train"]),
    ]


def test_rows_hold_the_image_of_their_key(tmp_path):
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    for task in ("x", "y"):
        for colour in colours:
            for number in range(6):
                save(tmp_path / task / colour / f"{number}.png", colour)
    for task_id, task in enumerate(folder_task_set(tmp_path)):
        for split in SPLITS:
            for row in task.split(split):
                folder = row["key"].split("/")[1]
                assert row["image"].getpixel((0, 0)) == colours[folder]
                assert task.class_names[row["label"]] == folder
                assert row["task_id"] == task_id


def test_sampling_keeps_its_promises(tmp_path):
    splits(tmp_path, "art", cat=(20, 4, 2), dog=(5, 4, 2))
    everything = keys(folder_task_set(tmp_path))["art"]
    shots = [keys(folder_task_set(tmp_path, shots=shots))["art"] for shots in (2, 4, 10)]
    assert [len(found["train"]) for found in shots] == [4, 8, 15]
    assert shots[0]["train"] < shots[1]["train"] < shots[2]["train"] < everything["train"]
    assert all(found[split] == everything[split] for found in shots for split in SPLITS[1:])
    assert len(keys(folder_task_set(tmp_path, train_fraction=0.1))["art"]["train"]) == 3
    assert keys(folder_task_set(tmp_path, shots=2, seed=2))["art"]["train"] != shots[0]["train"]
    with pytest.raises(ValueError, match=r"`train_fraction` is 0\.5 and `shots` is 2"):
        folder_task_set(tmp_path, train_fraction=0.5, shots=2)


def test_seeds_share_their_test_images(tmp_path):
    flat(tmp_path, "art", cat=30)
    first, second = (keys(folder_task_set(tmp_path, shots=5, seed=seed))["art"] for seed in (1, 2))
    assert first["test"] == second["test"]
    assert first["validation"] | first["dev"] == second["validation"] | second["dev"]
    assert first["train"] != second["train"]
    assert keys(folder_task_set(tmp_path, split_seed=1))["art"]["test"] != first["test"]


def test_without_validation_dev_comes_out_of_train(tmp_path, caplog):
    splits(tmp_path, "art", cat=(10, 0, 2), dog=(10, 0, 2))
    with caplog.at_level(logging.WARNING):
        found = keys(folder_task_set(tmp_path, shots=5))["art"]
    assert [len(found[split]) for split in SPLITS] == [10, 0, 4, 4]
    assert not found["train"] & found["dev"]
    assert "4 of its 20 training images serve the scheduler" in caplog.text


def test_manifest_names_what_was_used_and_can_be_reused(tmp_path):
    root = tmp_path / "data"
    flat(root, "art", cat=20, dog=10)
    splits(root, "clip art", cat=(4, 4, 4), **{"light & video": (5, 3, 2)})
    task_set = folder_task_set(root, shots=3, seed=7)
    assert keys(task_set) == {
        task: {split: set(found) for split, found in named.items()}
        for task, named in task_set.manifest["tasks"].items()
    }
    assert task_set.manifest["seed"] == 7
    assert task_set.manifest["options"]["shots"] == 3
    write_manifest(task_set.manifest, tmp_path / "manifest.json")
    manifest = read_manifest(tmp_path / "manifest.json")
    assert manifest == task_set.manifest
    # neither new images, classes and tasks nor another place change what a manifest gives
    root.rename(tmp_path / "moved")
    flat(tmp_path / "moved", "art", cat=40, ant=5)
    flat(tmp_path / "moved", "another", cat=5)
    reused = folder_task_set(tmp_path / "moved", manifest=manifest)
    assert reused.manifest == manifest
    assert reused.class_names == task_set.class_names
    for one, two in zip(task_set, reused, strict=True):
        for split in SPLITS:
            for column in ("key", "label", "task_id"):
                assert read_column(one.split(split), column) == read_column(two.split(split), column)


def test_a_manifest_that_does_not_fit_is_refused(tmp_path):
    flat(tmp_path, "art", cat=20)
    manifest = folder_task_set(tmp_path).manifest
    with pytest.raises(ValueError, match="`manifest` fixes the training images: leave out"):
        folder_task_set(tmp_path, shots=1, manifest=manifest)
    with pytest.raises(ValueError, match="belongs to the task set 'shapes'"):
        folder_task_set(tmp_path, manifest={**manifest, "task_set": "shapes"})
    with pytest.raises(ValueError, match=r"`manifest` gives task 'art' the splits \['train'\]"):
        folder_task_set(tmp_path, manifest={**manifest, "tasks": {"art": {"train": []}}})
    missing = manifest["tasks"]["art"]["train"][2]
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=rf"`manifest` names '{missing}' \(train of task 'art'\)"):
        folder_task_set(tmp_path, manifest=manifest)
    shutil.rmtree(tmp_path / "art")
    flat(tmp_path, "clipart", cat=20)
    with pytest.raises(ValueError, match=f"`manifest` names '{manifest['tasks']['art']['train'][0]}'"):
        folder_task_set(tmp_path, manifest=manifest)


def test_whatever_is_passed_over_is_counted(tmp_path, caplog):
    flat(tmp_path, "art", cat=10)
    cat = tmp_path / "art" / "cat"
    for name in ("a.txt", "b.TXT", "c.json", "LICENSE", ".DS_Store"):
        (cat / name).write_text("no image")
    save(cat / "deeper" / "x.JPEG")
    save(cat / ".ipynb_checkpoints" / "0-checkpoint.png")
    save(tmp_path / "art" / "astray.png")
    save(tmp_path / "astray.png")
    (tmp_path / "README.md").write_text("in no task")
    (cat / "empty").mkdir()
    os.mkfifo(cat / "pipe.png")
    found = set.union(*keys(folder_task_set(tmp_path))["art"].values())
    assert found == {*(f"art/cat/{number}.png" for number in range(10)), "art/cat/deeper/x.JPEG"}
    said = caplog.text.partition("Passed over below")[2]
    for what in (
        *("1 x .txt", "1 x .TXT", "1 x .json", "1 x .md", "1 x (no suffix)", "2 x hidden", "1 x empty folder"),
        *("2 x image in no class folder", "1 x no regular file"),
    ):
        assert what in said, what


def test_bad_images_are_skipped_on_request_only(tmp_path, caplog):
    flat(tmp_path, "art", cat=10, dog=10)
    (tmp_path / "art" / "cat" / "3.png").write_bytes(b"no image")
    whole = (tmp_path / "art" / "dog" / "4.png").read_bytes()
    (tmp_path / "art" / "dog" / "4.png").write_bytes(whole[: len(whole) // 2])
    assert len(set.union(*keys(folder_task_set(tmp_path))["art"].values())) == 20
    with caplog.at_level(logging.WARNING):
        found = set.union(*keys(folder_task_set(tmp_path, skip_bad_images=True))["art"].values())
    assert len(found) == 18
    assert not found & {"art/cat/3.png", "art/dog/4.png"}
    assert "Skipped 2 unreadable images" in caplog.text
    assert "art/cat/3.png, art/dog/4.png" in caplog.text


def test_a_missing_root_is_refused_with_the_layout(tmp_path):
    layout = r"expected ROOT/<task>/<class>/<image> or ROOT/<task>/\{train,validation,test\}/<class>/<image>"
    with pytest.raises(FileNotFoundError, match=f"`data_root` '.*nowhere' does not exist: {layout}"):
        folder_task_set(tmp_path / "nowhere")
    save(tmp_path / "image.png")
    with pytest.raises(NotADirectoryError, match=f"is a file, not a folder: {layout}"):
        folder_task_set(tmp_path / "image.png")
    with pytest.raises(ValueError, match=f"has no folder in it: {layout}"):
        folder_task_set(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("TRAIN", "dev", "TEST"),
        ("seg_train", "valset", "test-images"),
        ("train2017", "val2017", "test2017"),
        ("Training Set", "Validation Set", "Test Set"),
        ("train_images", "2017_val", "testData_v2"),
        ("x_train", "x_val", "x_test"),
        ("trainA", "valA", "testA"),
        ("mytrain", "myvalid", "mytest"),
    ],
)
def test_split_folders_are_known_as_people_spell_them(names, tmp_path):
    splits(tmp_path / "data", "art", names=names, cat=(4, 4, 3), dog=(3, 2, 1))
    task = folder_task_set(tmp_path / "data").tasks[0]
    assert task.class_names == ("cat", "dog")
    assert [len(task.split(split)) for split in SPLITS] == [7, 3, 3, 4]
    for name in names[::2]:  # as tasks, and as classes, they are questioned
        shutil.copytree(tmp_path / "data" / "art", tmp_path / "tasks" / name)
        flat(tmp_path / "classes", "art", **{name: 5})
    with pytest.raises(ValueError, match=r"has folders for splits \(.*\) where its tasks should be"):
        folder_task_set(tmp_path / "tasks")
    with pytest.raises(ValueError, match=r"the folders .* are named after splits, but hold images and no class"):
        folder_task_set(tmp_path / "classes")


def test_names_that_only_sound_like_splits_are_classes(tmp_path):
    flat(tmp_path, "art", **dict.fromkeys(("bullet train", "test tube", "trains", "contest", "valley"), 4))
    assert len(folder_task_set(tmp_path).tasks[0].class_names) == 5


@pytest.mark.parametrize("folders", ["{split}/{name}", "{split}/art/{name}", "{split}/{name}/{name}"])
def test_splits_above_tasks_are_questioned(folders, tmp_path):
    for split in ("Train", "valid", "seg_test"):
        for name in ("cat", "dog"):
            save(tmp_path / folders.format(split=split, name=name) / "1.png")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"has folders for splits \(Train, seg_test, valid\) where its tasks should"):
        folder_task_set(tmp_path)


@pytest.mark.parametrize("strays", [0, 1])
@pytest.mark.parametrize(
    "folders", ["animals/art/{name}", "art/seg/{name}", "art/{name}/train", "art/train/train/{name}", "a/b/art/{name}"]
)
def test_class_folders_of_folders_are_questioned(folders, strays, tmp_path):
    """A root that is one level too high, or splits where they are not looked for: never classes of their own.

    Some images that have been left above change nothing.
    """
    for name in ("cat", "dog"):
        for number in range(5):
            save(tmp_path / folders.format(name=name) / f"{number}.png")
            save(tmp_path / folders.format(name=name).replace("train", "test") / f"{number}.png")
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir() and any(map(os.path.isdir, path.iterdir()))]:
        for number in range(strays):
            save(folder / f"stray{number}.png")
    holds = r"(a folder for a split \('\w+'\)|mostly folders, beside 1 images)" if strays else "only folders"
    with pytest.raises(ValueError, match=rf"holds {holds} \('.*', ...\): expected ROOT/.* one level too high\?"):
        folder_task_set(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    flat(tmp_path, "art", cat=4)
    monkeypatch.setattr(os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied", str(path))))
    with pytest.raises(ValueError, match=r"`data_root`: '.*' cannot be read \(.*denied"):
        folder_task_set(tmp_path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: save(root / "cat" / "1.png"), "cat' has no class folders in it: .* one level too deep"),
        (
            lambda root: (flat(root, ".", cat=8), flat(root, "cat", thumbnails=2)),
            r"cat' holds 8 images in no class folder, and 2 in folders: .* too deep\?",
        ),
        (lambda root: save(root / "/".join(60 * "x") / "1.png"), "`data_root`: '.*' lies more than 50 folders deep"),
        (
            lambda root: (splits(root, "art", cat=(2, 2, 2)), flat(root, "art", dog=3)),
            "holds both the split folder 'test' and the folder 'dog'",
        ),
        (
            lambda root: [splits(root, "art", ("train", name, "test"), cat=(2, 2, 2)) for name in ("val", "dev")],
            "has two folders for 'validation'",
        ),
        (lambda root: splits(root, "art", cat=(2, 2, 0)), "none for 'test'"),
        (lambda root: splits(root, "art", cat=(2, 2, 2), dog=(0, 0, 1)), "class 'dog' .* has no training images"),
        (
            lambda root: (flat(root, "art", cat=5), (root / "art" / "empty").mkdir()),
            "class 'empty' of task 'art' has no training images",
        ),
        (lambda root: flat(root, "art", a_b=4, **{"a b": 4}), "of task 'art' holds 'a b' more than once"),
        (lambda root: flat(root, "art", cat=1), "task 'art' has no test images"),
        (lambda root: splits(root, "art", cat=(1, 0, 1)), "`dev` of task 'art' would be empty"),
    ],
)
def test_what_cannot_be_used_is_refused(build, message, tmp_path):
    build(tmp_path)
    with pytest.raises(ValueError, match=message):
        folder_task_set(tmp_path)
