"""`recipes/evaluate.py` tests no adapter on images that it was trained with, and says which images it did test."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import asdict

import benchmark_data
import pytest
import train
from hub_server import Hub
from paths import RECIPES, load_recipe
from PIL import Image
from recipe_runs import draw_images, fails, on_folder, save_adapter
from rich.console import Console
from task_data import DataArguments
from tested_images import load_tested, own_split

from jscpt_peft.data import load_task_set, read_manifest, write_manifest
from jscpt_peft.data.benchmarks import BENCHMARKS

evaluate = load_recipe("evaluate")
DOMAINS = ("art", "clipart", "product", "real_world")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Office-Home with five images per class and domain, and EuroSAT."""
    root = tmp_path_factory.mktemp("data")
    benchmark_data.folder("office_home", root, {"train": 3, "validation": 1, "test": 1})
    benchmark_data.folder("eurosat", root)
    return root


@pytest.fixture(scope="module")
def most_of_it(home, tmp_path_factory):
    """An adapter of 40 % of Office-Home: two images per class in training, two in validation, one in test."""
    task_set = load_task_set("office_home", home, train_fraction=0.4, seed=1)
    return adapter_of(tmp_path_factory.mktemp("adapter"), task_set)


@pytest.fixture
def images(tmp_path):
    return draw_images(tmp_path / "images", count=14, suffix="png")


def adapter_of(folder, task_set):
    write_manifest(task_set.manifest, save_adapter(folder, task_set.class_names) / "manifest.json")
    return folder


def of_folder(folder, images, **options):
    return adapter_of(folder, load_task_set("folder", images, seed=3, **options))


def loaded(task_set, root, adapter, seed=42, **options):
    """Test images by task, protocol and manifest of an evaluation, and what it says."""
    console = Console(file=io.StringIO(), width=10_000)
    data = DataArguments(task_set=task_set, data_root=root and str(root), **options)
    found = load_tested(data, own_split(str(adapter), None) if adapter else None, seed, console)
    console.print(f"{found} ...", markup=False)
    sizes = {task.name: len(task.test) for task in found.task_set}
    return sizes, found.protocol(), found.task_set.manifest, console.file.getvalue()


def refused(*arguments, **options):
    with pytest.raises(ValueError, match="`adapter`") as error:
        loaded(*arguments, **options)
    return str(error.value)


# ---- the adapter's own split ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_tested_on_its_own_split_whatever_the_seed(images, tmp_path, capsys):
    run = tmp_path / "run"
    quick = ["--max_steps", "1", "--per_device_train_batch_size", "1", "--save_strategy", "steps", "--save_steps", "1"]
    train.main(on_folder(images, run, *quick, "--eval_strategy", "no", "--shots", "2", "--seed", "7"))
    place, results = run / "manifest.json", json.loads((run / "results.json").read_text())["tasks"]
    capsys.readouterr()
    for adapter, options in ((run, []), (run / "checkpoint-1", ["--shots", "2"])):
        output = tmp_path / f"of {adapter.name}"
        evaluate.main(on_folder(images, output, "--adapter", adapter, "--corruptions", "none", *options))
        found = json.loads((output / "evaluation.json").read_text())
        assert read_manifest(output / "manifest.json") == read_manifest(place)
        known = {"split": "the adapter's own", "manifest": str(place), "seed": 7, "train_fraction": None, "shots": 2}
        known |= {"sources": None, "tasks_not_compared_with_training": None, "corruption_seed": None}
        assert {name: found["subject"][name] for name in known} == known
        said = " ".join(capsys.readouterr().out.split())
        assert f"24 test images of 2 tasks, the adapter's own split ({place}: seed 7, shots 2) ..." in said
        assert "Warning" not in said
        assert "seed: 7; shots: 2" in (output / "evaluation.md").read_text(encoding="utf-8")
    for name in results:
        accuracies = json.loads((tmp_path / "of run" / "evaluation.json").read_text())["tasks"]
        assert accuracies[name]["accuracy"] == results[name]["trained"]


def test_a_moved_folder_with_more_images_keeps_the_split(images, tmp_path):
    adapter = of_folder(tmp_path / "adapter", images, shots=2)
    moved = images.rename(tmp_path / "moved")
    Image.new("RGB", (8, 8)).save(moved / "my photos" / "sky" / "new.png")
    sizes, protocol, manifest, _ = loaded("folder", moved, adapter)
    assert manifest == read_manifest(adapter / "manifest.json")
    assert (protocol["split"], protocol["seed"], protocol["shots"]) == ("the adapter's own", 3, 2)
    assert sizes == {"my photos": 12, "scans": 12}


def test_zero_shot_clip_is_compared_on_the_same_images(home, most_of_it):
    own = str(most_of_it / "manifest.json")
    sizes, protocol, manifest, _ = loaded("office_home", home, None, seed=2, manifest=own)
    assert (sizes["art"], manifest) == (65, read_manifest(own))
    assert (protocol["split"], protocol["manifest"], protocol["seed"]) == ("given", own, 1)
    sizes, protocol, manifest, _ = loaded("office_home", home, None, seed=2)
    assert sizes["art"] == 195
    assert manifest == load_task_set("office_home", home, seed=2).manifest
    drawn = {"split": "drawn", "manifest": None, "seed": 2, "train_fraction": 0.1, "shots": None}
    assert {name: protocol[name] for name in drawn} == drawn


# ---- other splits ---------------------------------------------------------------------------------------------------


def test_images_of_training_validation_and_dev_are_refused(home, most_of_it, tmp_path):
    # With the same seed 20 % train on one image per class, validate on the next and test on three, of which two are
    # the adapter's for validation and D_dev.
    message = refused("office_home", home, most_of_it, seed=1, train_fraction=0.2)
    known = ", ".join(f"130 of the 195 test images of task '{name}'" for name in DOMAINS)
    assert f"`adapter` {most_of_it} was trained, validated or scheduled with {known}: accuracies" in message
    assert "Leave out --train_fraction: then its own manifest.json decides about the split." in message

    other = load_task_set("office_home", home, train_fraction=0.2, seed=2).manifest
    write_manifest(other, tmp_path / "other.json")
    own = read_manifest(most_of_it / "manifest.json")["tasks"]["clipart"]
    used = {key for split in ("train", "validation", "dev") for key in own[split]}
    count = len(used & set(other["tasks"]["clipart"]["test"]))
    assert count > 100
    message = refused("office_home", home, most_of_it, manifest=str(tmp_path / "other.json"))
    assert f"{count} of the 195 test images of task 'clipart'" in message
    assert "Leave out --manifest: then" in message


def test_another_split_without_such_images_is_used(home, tmp_path):
    # With the same seed 40 % train and validate on the first four images of a class; 20 % on the first two of them.
    few = adapter_of(tmp_path / "few", load_task_set("office_home", home, train_fraction=0.2, seed=1))
    sizes, protocol, _, said = loaded("office_home", home, few, seed=1, train_fraction=0.4)
    assert sizes == dict.fromkeys(DOMAINS, 65)
    assert (protocol["split"], protocol["train_fraction"]) == ("drawn", 0.4)
    assert protocol["tasks_not_compared_with_training"] is None
    assert said == "drawn split (seed 1, train_fraction 0.4) ...\n"


def test_part_of_a_mixture_is_compared_too(home, tmp_path):
    mixture = load_task_set("office_home,eurosat", home, seed=1)
    adapter = adapter_of(tmp_path / "adapter", mixture)
    message = refused("office_home", home, adapter, seed=2)
    assert "of the 195 test images of task 'art'" in message
    assert "Give --task_set office_home,eurosat, as in its training, or the same --seed 1." in message
    sizes, protocol, _, _ = loaded("office_home", home, adapter, seed=1)
    assert sizes == dict.fromkeys(DOMAINS, 195)
    assert protocol["tasks_not_compared_with_training"] is None
    sizes, protocol, manifest, _ = loaded(" office_home, eurosat", home, adapter)
    assert (len(sizes), protocol["split"], manifest) == (5, "the adapter's own", mixture.manifest)
    # EuroSAT has test images of its own: no seed makes others of them.
    sizes, protocol, _, _ = loaded("eurosat", home, adapter, seed=2)
    assert (sizes, protocol["split"], protocol["shots"]) == ({"eurosat": 20}, "drawn", 5)
    assert protocol["tasks_not_compared_with_training"] is None


def test_a_folder_that_lost_images_is_split_anew_and_compared(images, tmp_path):
    adapter = of_folder(tmp_path / "adapter", images)
    own = read_manifest(adapter / "manifest.json")["tasks"]["my photos"]
    (images / own["train"][0]).unlink()  # the test images stay the same
    _, protocol, manifest, said = loaded("folder", images, adapter)
    assert (protocol["split"], protocol["tasks_not_compared_with_training"]) == ("drawn", None)
    assert manifest["tasks"]["my photos"]["test"] == own["test"]
    assert f"so that a new split is drawn: `manifest` names '{own['train'][0]}'" in said
    assert "Warning" not in said

    (images / own["test"][0]).unlink()  # another image takes its place
    message = refused("folder", images, adapter)
    assert "was trained, validated or scheduled with 1 of the 12 test images of task 'my photos': acc" in message
    assert "Give the data that its own manifest.json was written for. Other images of the same names need" in message


def test_images_that_cannot_be_compared_are_used_with_a_warning(images, tmp_path):
    """The same tasks and classes in another folder, and an adapter without a manifest."""
    adapter = of_folder(tmp_path / "adapter", images)
    other = draw_images(tmp_path / "other", count=14, suffix="jpg")
    _, protocol, manifest, said = loaded("folder", other, adapter)
    both = "my photos, scans"
    assert (protocol["split"], protocol["tasks_not_compared_with_training"]) == ("drawn", both)
    assert manifest == load_task_set("folder", other, seed=42).manifest
    warning = f"Warning: nobody knows whether `adapter` {adapter} was trained with some of the test images of {both}: "
    assert f"{warning}{adapter / 'manifest.json'} (task set 'folder') names other images, or the same ones" in said

    (adapter / "manifest.json").unlink()
    _, protocol, _, said = loaded("folder", images, adapter)
    assert (protocol["split"], protocol["tasks_not_compared_with_training"]) == ("drawn", both)
    assert f"Warning: `adapter` {adapter} has no manifest.json, so that nobody knows whether it was trained" in said


def test_drawn_shapes_are_never_those_of_training(tmp_path):
    adapter = adapter_of(tmp_path / "adapter", load_task_set("shapes", seed=1, shots=2))
    sizes, protocol, _, said = loaded("shapes", None, adapter, seed=5)
    assert sum(sizes.values()) == 1600
    known = {"split": "drawn", "seed": 5, "shots": 16, "sources": None, "tasks_not_compared_with_training": None}
    assert {name: protocol[name] for name in known} == known
    assert "Warning" not in said


def test_a_file_that_is_no_manifest_is_told_of(images, tmp_path):
    adapter = of_folder(tmp_path / "adapter", images)
    for content, fault in (
        ('{"name": "an app"}', "has no 'task_set'"),
        ('{"task_set": "folder", "seed": 1, "options": {}, "tasks": ["scans"]}', "is no list of images by task and"),
    ):
        (adapter / "manifest.json").write_text(content)
        message = refused("folder", images, adapter)
        assert f"`adapter` {adapter}: what it was trained with is unknown: `manifest` " in message
        assert fault in message
        assert "Or remove the file, if it is none." in message


def test_no_manifest_takes_the_place_of_that_of_a_training(images, tmp_path, capsys):
    adapter = of_folder(tmp_path / "adapter", images)
    own = (adapter / "manifest.json").read_text()
    options = ["--adapter", adapter, "--corruptions", "none", "--overwrite_output_dir"]
    evaluate.main(on_folder(images, adapter, *options))
    assert (adapter / "manifest.json").read_text() == own
    options += ["--shots", "2"]
    message = fails(capsys, evaluate.main, *on_folder(images, adapter, *options))
    assert f"`output_dir` {adapter} holds an adapter, and the manifest.json of this evaluation is not that" in message
    assert (adapter / "manifest.json").read_text() == own
    run = tmp_path / "run"  # one that was interrupted
    shutil.copytree(adapter, run / "checkpoint-4")
    assert "holds an adapter" in fails(capsys, evaluate.main, *on_folder(images, run, *options))
    assert not (run / "manifest.json").exists()


# ---- on the Hub -----------------------------------------------------------------------------------------------------

PROGRAM = """
import io, json, sys
from rich.console import Console
from task_data import DataArguments
from tested_images import load_tested, own_split

done = {}
for name, (data, adapter, revision, seed) in json.loads(sys.argv[1]).items():
    console = Console(file=io.StringIO(), width=10_000)
    try:
        found = load_tested(DataArguments(**data), adapter and own_split(adapter, revision), seed, console)
        error, protocol, manifest = None, found.protocol(), found.task_set.manifest
    except ValueError as refused:
        error, protocol, manifest = str(refused), None, None
    done[name] = {"error": error, "said": console.file.getvalue(), "protocol": protocol, "manifest": manifest}
print(json.dumps(done))
"""


def on_hub(hub, cache, cases):
    """What comes of `cases`, name -> (data arguments, adapter, revision, seed), in one process."""
    cases = {
        name: ({**asdict(DataArguments("office_home")), **data}, *others) for name, (data, *others) in cases.items()
    }
    done = hub.run([sys.executable, "-c", PROGRAM, json.dumps(cases)], home=cache, PYTHONPATH=str(RECIPES))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_manifest_on_the_hub_decides(home, most_of_it, tmp_path):
    place, adapter, local = BENCHMARKS["office_home"].hub[0], "user/adapter", {"data_root": str(home)}
    with Hub() as hub:
        files = benchmark_data.repository("office_home", place, {"pool": 5})
        commit = hub.add(place.repository, files, kind="datasets", revision=place.revision)
        hub.add(place.repository, {**files, "LICENSE": "new"}, kind="datasets", revision="new")
        drawn = on_hub(hub, tmp_path / "cache", {"rows": ({"train_fraction": 0.4}, None, None, 5)})
        rows = drawn["rows"]["manifest"]
        assert rows["options"]["sources"] == {"office_home": f"{place.repository}@{commit}"}

        files = {path.name: path for path in most_of_it.iterdir() if path.is_file()}
        hub.add(adapter, {**files, "manifest.json": json.dumps(rows)})
        hub.add(adapter, files, revision="local")
        hub.add(adapter, {name: path for name, path in files.items() if name != "manifest.json"}, revision="none")
        cases = {
            "own": ({}, adapter, None, 42),
            "own paths": (local, adapter, "local", 42),
            "another draw": ({"train_fraction": 0.2}, adapter, None, 42),
            "paths, not rows": (local, adapter, None, 42),
            "rows, not paths": ({}, adapter, "local", 42),
            "another commit": ({"data_revision": "new"}, adapter, None, 42),
            "no manifest": ({}, adapter, "none", 42),
        }
        done = on_hub(hub, tmp_path / "cache", cases)
    assert [name for name, case in done.items() if case["error"]] == ["another draw"]
    assert "test images of task 'product'" in done["another draw"]["error"]
    assert "Leave out --train_fraction: then" in done["another draw"]["error"]
    assert done["own"]["manifest"] == rows
    assert done["own paths"]["manifest"] == read_manifest(most_of_it / "manifest.json")
    for name, seed in (("own", 5), ("own paths", 1)):
        known = {"split": "the adapter's own", "manifest": "user/adapter/manifest.json", "seed": seed}
        known["tasks_not_compared_with_training"] = None
        assert {each: done[name]["protocol"][each] for each in known} == known
    for name in ("paths, not rows", "rows, not paths", "another commit", "no manifest"):
        assert done[name]["protocol"]["split"] == "drawn", name
        assert done[name]["protocol"]["tasks_not_compared_with_training"] == ", ".join(DOMAINS), name
        assert "Warning: " in done[name]["said"], name
    assert "its images were not read from the Hub, but from a `data_root`" in done["rows, not paths"]["said"]
    assert "so that a new split is drawn: `manifest` names 'train/" in done["paths, not rows"]["said"]
    assert "`adapter` user/adapter has no manifest.json" in done["no manifest"]["said"]
