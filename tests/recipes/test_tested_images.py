"""`recipes/evaluate.py` tests no adapter on images that it was trained with, and says which images it did test."""

from __future__ import annotations

import json
import shutil
import sys

import benchmark_data
import pytest
import train
from hub_server import Hub
from paths import RECIPES, TINY_CLIP, load_recipe
from peft import get_peft_model
from PIL import Image
from transformers import CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import load_task_set, read_manifest, write_manifest
from jscpt_peft.data.benchmarks import BENCHMARKS

evaluation = load_recipe("evaluate")
QUICK = ["--use_cpu", "--dataloader_num_workers", "0", "--corruptions", "none"]
DOMAINS = ("art", "clipart", "product", "real_world")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Office-Home with five images a class and domain, and EuroSAT."""
    root = tmp_path_factory.mktemp("data")
    benchmark_data.folder("office_home", root, {"train": 3, "validation": 1, "test": 1})
    benchmark_data.folder("eurosat", root)
    return root


@pytest.fixture(scope="module")
def most_of_it(home, tmp_path_factory):
    """An adapter of 40 % of Office-Home: two images of a class in training, two in validation, one in test."""
    task_set = load_task_set("office_home", home, train_fraction=0.4, seed=1)
    return save_adapter(tmp_path_factory.mktemp("adapter"), task_set)


@pytest.fixture
def pictures(tmp_path):
    return draw(tmp_path / "pictures", "{}.png")


def draw(root, name):
    """Two tasks of two classes with 14 pictures."""
    for task in ("photos", "scans"):
        for colour in ("blue", "red"):
            for number in range(14):
                path = root / task / colour / name.format(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), colour).save(path)
    return root


def save_adapter(folder, task_set, manifest=True):
    config = JSCPTConfig(tasks=task_set.class_names, num_shared_tokens=1, num_task_tokens=1)
    get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config).save_pretrained(folder)
    if manifest:
        write_manifest(task_set.manifest, folder / "manifest.json")
    return folder


def of_folder(folder, pictures, **options):
    return save_adapter(folder, load_task_set("folder", pictures, seed=3, **options))


def arguments(task_set, root, adapter, *more):
    return list(map(str, ["--task_set", task_set, "--data_root", root, "--adapter", adapter, *QUICK, *more]))


def evaluated(output, *command):
    """What a run says of its images: numbers by task, protocol, manifest."""
    evaluation.main([*command, "--output_dir", str(output)])
    found = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    manifest = read_manifest(output / "manifest.json")
    images = {name: task["images"] for name, task in found["tasks"].items()}
    assert images == {name: len(splits["test"]) for name, splits in manifest["tasks"].items()}
    return images, found["subject"], manifest


def refused(capsys, output, *command):
    """The message with which a run ends."""
    with pytest.raises(SystemExit) as stop:
        evaluation.main([*command, "--output_dir", str(output)])
    assert stop.value.code == 1
    assert not (output / "evaluation.json").exists()
    return " ".join(capsys.readouterr().out.split())


# ---- the adapter's own split ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_tested_on_its_own_split_whatever_the_seed(home, tmp_path, capsys):
    run = tmp_path / "run"
    office = ["--task_set", "office_home", "--data_root", str(home), "--use_cpu", "--dataloader_num_workers", "0"]
    quick = ["--max_steps", "1", "--per_device_train_batch_size", "1", "--dev_batch_size", "1"]
    quick += ["--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", "1", "--num_shared_tokens", "1"]
    quick += ["--model_name_or_path", str(TINY_CLIP), "--train_fraction", "0.4", "--seed", "7"]
    train.main([*office, *quick, "--output_dir", str(run)])
    own, results = read_manifest(run / "manifest.json"), json.loads((run / "results.json").read_text())
    capsys.readouterr()
    for adapter, options in ((run, []), (run / "checkpoint-1", ["--train_fraction", "0.4", "--seed", "3"])):
        output = tmp_path / f"of {adapter.name}"
        images, subject, manifest = evaluated(output, *arguments("office_home", home, adapter, *options))
        assert images == dict.fromkeys(DOMAINS, 65)
        assert manifest == own
        place = run / "manifest.json"
        known = {"split": "the adapter's own", "manifest": str(place), "seed": 7, "train_fraction": 0.4, "shots": None}
        known["sources"] = f"office_home from {own['options']['sources']['office_home']}"
        known["tasks_not_compared_with_training"] = known["corruption_seed"] = None
        assert {name: subject[name] for name in known} == known
        said = " ".join(capsys.readouterr().out.split())
        line = f"260 test images of 4 tasks, the adapter's own split ({place}: seed 7, train_fraction 0.4) ..."
        assert line in said
        assert "Warning" not in said
        markdown = (output / "evaluation.md").read_text(encoding="utf-8")
        assert "seed: 7; train fraction: 0.4; sources: office_home from" in markdown
    accuracies = json.loads((tmp_path / "of run" / "evaluation.json").read_text())["tasks"]
    for name in DOMAINS:
        assert accuracies[name]["accuracy"] == results["tasks"][name]["trained"]


def test_a_moved_folder_with_more_pictures_keeps_the_split(pictures, tmp_path):
    adapter = of_folder(tmp_path / "adapter", pictures, shots=2)
    moved = pictures.rename(tmp_path / "moved")
    Image.new("RGB", (8, 8)).save(moved / "photos" / "red" / "new.png")
    images, subject, manifest = evaluated(tmp_path / "out", *arguments("folder", moved, adapter))
    assert manifest == read_manifest(adapter / "manifest.json")
    assert (subject["split"], subject["seed"], subject["shots"]) == ("the adapter's own", 3, 2)
    assert images == {"photos": 8, "scans": 8}


def test_zero_shot_clip_is_compared_on_the_same_images(home, most_of_it, tmp_path):
    office = ["--task_set", "office_home", "--data_root", str(home), "--method", "zero_shot", *QUICK]
    office += ["--model_name_or_path", str(TINY_CLIP)]
    own = most_of_it / "manifest.json"
    images, subject, manifest = evaluated(tmp_path / "same", *office, "--manifest", str(own), "--seed", "2")
    assert (images["art"], manifest) == (65, read_manifest(own))
    assert (subject["split"], subject["manifest"], subject["seed"]) == ("given", str(own), 1)
    images, subject, manifest = evaluated(tmp_path / "drawn", *office, "--seed", "2")
    assert images["art"] == 195
    assert manifest == load_task_set("office_home", home, seed=2).manifest
    drawn = {"split": "drawn", "manifest": None, "seed": 2, "train_fraction": 0.1, "shots": None}
    assert {name: subject[name] for name in drawn} == drawn


# ---- other splits ---------------------------------------------------------------------------------------------------


def test_images_of_training_validation_and_dev_are_refused(home, most_of_it, tmp_path, capsys):
    # With the same seed 20 % train on one image a class, validate on the next and test on three, of which two are the
    # adapter's for validation and D_dev.
    message = refused(
        capsys,
        tmp_path / "out",
        *arguments("office_home", home, most_of_it, "--train_fraction", "0.2", "--seed", "1"),
    )
    known = ", ".join(f"130 of the 195 test images of task '{name}'" for name in DOMAINS)
    assert f"`adapter` {most_of_it} was trained, validated or scheduled with {known}: accuracies" in message
    assert "Leave out --train_fraction: then its own manifest.json decides about the split." in message

    other = load_task_set("office_home", home, train_fraction=0.2, seed=2).manifest
    write_manifest(other, tmp_path / "other.json")
    own = read_manifest(most_of_it / "manifest.json")["tasks"]["clipart"]
    used = {key for split in ("train", "validation", "dev") for key in own[split]}
    count = len(used & set(other["tasks"]["clipart"]["test"]))
    assert count > 100
    message = refused(
        capsys,
        tmp_path / "out",
        *arguments("office_home", home, most_of_it, "--manifest", tmp_path / "other.json"),
    )
    assert f"{count} of the 195 test images of task 'clipart'" in message
    assert "Leave out --manifest: then" in message


def test_another_split_without_such_images_is_used(home, tmp_path, capsys):
    # With the same seed 40 % train and validate on the first four images of a class; 20 % on the first two of them.
    few = save_adapter(tmp_path / "few", load_task_set("office_home", home, train_fraction=0.2, seed=1))
    options = ["--train_fraction", "0.4", "--seed", "1"]
    images, subject, _ = evaluated(tmp_path / "out", *arguments("office_home", home, few, *options))
    assert images == dict.fromkeys(DOMAINS, 65)
    assert (subject["split"], subject["train_fraction"]) == ("drawn", 0.4)
    assert subject["tasks_not_compared_with_training"] is None
    said = capsys.readouterr().out
    assert "260 test images of 4 tasks, drawn split (seed 1, train_fraction 0.4) ..." in said
    assert "Warning" not in said


def test_part_of_a_mixture_is_compared_too(home, tmp_path, capsys):
    mixture = load_task_set("office_home,eurosat", home, seed=1)
    adapter = save_adapter(tmp_path / "adapter", mixture)
    message = refused(capsys, tmp_path / "out", *arguments("office_home", home, adapter, "--seed", "2"))
    assert "of the 195 test images of task 'art'" in message
    assert "Give --task_set office_home,eurosat, as in its training, or the same --seed 1." in message
    images, subject, _ = evaluated(tmp_path / "same", *arguments("office_home", home, adapter, "--seed", "1"))
    assert images == dict.fromkeys(DOMAINS, 195)
    assert subject["tasks_not_compared_with_training"] is None
    images, subject, manifest = evaluated(tmp_path / "whole", *arguments(" office_home, eurosat", home, adapter))
    assert (len(images), subject["split"], manifest) == (5, "the adapter's own", mixture.manifest)
    # EuroSAT has test images of its own: no seed makes others of them.
    images, subject, _ = evaluated(tmp_path / "eurosat", *arguments("eurosat", home, adapter, "--seed", "2"))
    assert (images, subject["split"], subject["shots"]) == ({"eurosat": 20}, "drawn", 5)
    assert subject["tasks_not_compared_with_training"] is None


def test_a_folder_that_lost_pictures_is_split_anew_and_compared(pictures, tmp_path, capsys):
    adapter = of_folder(tmp_path / "adapter", pictures)
    own = read_manifest(adapter / "manifest.json")["tasks"]["photos"]
    (pictures / own["train"][0]).unlink()  # the test images stay the same
    _, subject, manifest = evaluated(tmp_path / "out", *arguments("folder", pictures, adapter))
    assert (subject["split"], subject["tasks_not_compared_with_training"]) == ("drawn", None)
    assert manifest["tasks"]["photos"]["test"] == own["test"]
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"manifest.json does not fit the data, so that a new split is drawn: `manifest` names '{own['train'][0]}'"
        in said
    )
    assert "Warning" not in said

    (pictures / own["test"][0]).unlink()  # another picture takes its place
    message = refused(capsys, tmp_path / "again", *arguments("folder", pictures, adapter))
    assert "was trained, validated or scheduled with 1 of the 8 test images of task 'photos': accuracies" in message
    assert "Give the data that its own manifest.json was written for. Other pictures of the same names need" in message


def test_images_that_cannot_be_compared_are_used_with_a_warning(pictures, tmp_path, capsys):
    """The same tasks and classes in another folder, and an adapter without a manifest."""
    adapter = of_folder(tmp_path / "adapter", pictures)
    other = draw(tmp_path / "other", "other {}.png")
    _, subject, manifest = evaluated(tmp_path / "out", *arguments("folder", other, adapter))
    assert subject["split"] == "drawn"
    assert subject["tasks_not_compared_with_training"] == "photos, scans"
    assert manifest == load_task_set("folder", other, seed=42).manifest
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"Warning: nobody knows whether `adapter` {adapter} was trained with some of the test images of photos, "
        in said
    )
    assert (
        f"scans: {adapter / 'manifest.json'} (task set 'folder') names other images, or the same ones otherwise"
        in said
    )

    (adapter / "manifest.json").unlink()
    _, subject, _ = evaluated(tmp_path / "without", *arguments("folder", pictures, adapter))
    assert (subject["split"], subject["tasks_not_compared_with_training"]) == ("drawn", "photos, scans")
    said = " ".join(capsys.readouterr().out.split())
    assert f"Warning: `adapter` {adapter} has no manifest.json, so that nobody knows whether it was trained" in said


@pytest.mark.slow
def test_drawn_shapes_are_never_those_of_training(tmp_path, capsys):
    adapter = save_adapter(tmp_path / "adapter", load_task_set("shapes", seed=1, shots=2))
    images, subject, _ = evaluated(
        tmp_path / "out", "--task_set", "shapes", "--adapter", str(adapter), *QUICK, "--seed", "5"
    )
    assert sum(images.values()) == 1600
    known = {"split": "drawn", "seed": 5, "shots": 16, "sources": None, "tasks_not_compared_with_training": None}
    assert {name: subject[name] for name in known} == known
    assert "Warning" not in capsys.readouterr().out


def test_a_file_that_is_no_manifest_is_told_of(pictures, tmp_path, capsys):
    adapter = of_folder(tmp_path / "adapter", pictures)
    for content, fault in (
        ('{"name": "an app"}', "has no 'task_set'"),
        ('{"task_set": "folder", "seed": 1, "options": {}, "tasks": ["photos"]}', "is no list of images by task and"),
    ):
        (adapter / "manifest.json").write_text(content)
        message = refused(capsys, tmp_path / "out", *arguments("folder", pictures, adapter))
        assert f"`adapter` {adapter}: what it was trained with is unknown: `manifest` " in message
        assert fault in message
        assert "Or remove the file, if it is none." in message


def test_no_manifest_takes_the_place_of_that_of_a_training(pictures, tmp_path, capsys):
    adapter = of_folder(tmp_path / "adapter", pictures)
    own = (adapter / "manifest.json").read_text()
    into = [*arguments("folder", pictures, adapter), "--overwrite_output_dir"]
    evaluated(adapter, *into)
    assert (adapter / "manifest.json").read_text() == own
    for place in ("evaluation.json", "evaluation.md"):
        (adapter / place).unlink()
    message = refused(capsys, adapter, *into, "--shots", "2")
    assert (
        f"`output_dir` {adapter} holds an adapter, and the manifest.json of this evaluation is not that of" in message
    )
    assert (adapter / "manifest.json").read_text() == own
    run = tmp_path / "run"  # one that was interrupted
    shutil.copytree(adapter, run / "checkpoint-4")
    assert "holds an adapter" in refused(capsys, run, *into, "--shots", "2")
    assert not (run / "manifest.json").exists()


# ---- on the Hub -----------------------------------------------------------------------------------------------------

PROGRAM = """
import io, json, sys
from pathlib import Path
import evaluate

cases, done = json.loads(sys.argv[1]), {}
for name, command in cases.items():
    evaluate.console.file, code = io.StringIO(), 0
    try:
        evaluate.main(command)
    except SystemExit as stop:
        code = stop.code
    output = Path(command[command.index("--output_dir") + 1])
    written = json.loads((output / "evaluation.json").read_text()) if code == 0 else None
    manifest = json.loads((output / "manifest.json").read_text()) if code == 0 else None
    said = " ".join(evaluate.console.file.getvalue().split())
    done[name] = {"code": code, "said": said, "subject": written and written["subject"], "manifest": manifest}
print(json.dumps(done))
"""


def on_hub(hub, cache, output, cases):
    """What comes of evaluating each of `cases`, name -> options, in one process."""
    commands = {
        name: ["--task_set", "office_home", *QUICK, *map(str, options), "--output_dir", str(output / name)]
        for name, options in cases.items()
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = hub.run(command, home=cache, PYTHONPATH=str(RECIPES))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_manifest_on_the_hub_decides(home, most_of_it, tmp_path):
    place = BENCHMARKS["office_home"].hub[0]
    zero_shot = ["--method", "zero_shot", "--model_name_or_path", TINY_CLIP, "--train_fraction", "0.4", "--seed", "5"]
    with Hub() as hub:
        files = benchmark_data.repository("office_home", place, {"pool": 5})
        commit = hub.add(place.repository, files, kind="datasets", revision=place.revision)
        hub.add(place.repository, {**files, "LICENSE": "new"}, kind="datasets", revision="new")
        rows = on_hub(hub, tmp_path / "cache", tmp_path, {"rows": zero_shot})["rows"]["manifest"]
        assert rows["options"]["sources"] == {"office_home": f"{place.repository}@{commit}"}

        files = {path.name: path for path in most_of_it.iterdir() if path.is_file()}
        hub.add("user/adapter", {**files, "manifest.json": json.dumps(rows)})
        hub.add("user/adapter", files, revision="local")
        hub.add(
            "user/adapter", {name: path for name, path in files.items() if name != "manifest.json"}, revision="none"
        )
        adapter, local = ["--adapter", "user/adapter"], ["--data_root", home]
        done = on_hub(
            hub,
            tmp_path / "cache",
            tmp_path,
            {
                "own": adapter,
                "own paths": [*adapter, "--revision", "local", *local],
                "another draw": [*adapter, "--train_fraction", "0.2"],
                "paths, not rows": [*adapter, *local],
                "rows, not paths": [*adapter, "--revision", "local"],
                "another commit": [*adapter, "--data_revision", "new"],
                "no manifest": [*adapter, "--revision", "none"],
            },
        )
    assert {name: case["code"] for name, case in done.items() if case["code"]} == {"another draw": 1}
    assert "test images of task 'product'" in done["another draw"]["said"]
    assert "Leave out --train_fraction: then" in done["another draw"]["said"]
    assert done["own"]["manifest"] == rows
    assert done["own paths"]["manifest"] == read_manifest(most_of_it / "manifest.json")
    assert done["own paths"]["subject"]["revision"] == "local"
    for name, seed in (("own", 5), ("own paths", 1)):
        known = {"split": "the adapter's own", "manifest": "user/adapter/manifest.json", "seed": seed}
        known["tasks_not_compared_with_training"] = None
        assert {each: done[name]["subject"][each] for each in known} == known
    for name in ("paths, not rows", "rows, not paths", "another commit", "no manifest"):
        assert done[name]["subject"]["split"] == "drawn", name
        assert done[name]["subject"]["tasks_not_compared_with_training"] == ", ".join(DOMAINS), name
        assert "Warning: " in done[name]["said"], name
    assert "its images were not read from the Hub, but from a `data_root`" in done["rows, not paths"]["said"]
    assert "so that a new split is drawn: `manifest` names 'train/" in done["paths, not rows"]["said"]
    assert "`adapter` user/adapter has no manifest.json" in done["no manifest"]["said"]
