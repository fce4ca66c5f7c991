"""Other classes than the trained ones, base and new classes, and other tasks' images, through the recipes."""

from __future__ import annotations

import json
import os

import predict
import pytest
import train
from class_templates import GENERAL
from other_classes import class_list
from paths import TINY_CLIP, load_recipe
from peft import PeftModel, get_peft_model
from recipe_runs import QUICK, TASKS, fails, statistics
from recipe_runs import on_folder as command
from transformers import CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import load_task_set
from jscpt_peft.data.base_to_new import base_classes, images_of_classes, new_classes
from jscpt_peft.evaluation.accuracy_tables import harmonic_mean

evaluate = load_recipe("evaluate")
BASE, NEW = ["pens & ink", "red things"], ["sky"]
ALL = [*BASE, *NEW]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """Trained on base classes."""
    output = tmp_path_factory.mktemp("run") / "out"
    train.main(command(images, output, *QUICK, "--split", "base_to_new", "--learning_rate", "0.3"))
    return output


def evaluated(images, run, output, *more, file="evaluation"):
    evaluate.main(command(images, output, "--adapter", run, "--corruptions", "none", *more))
    return json.loads((output / f"{file}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tested(images, run):
    """`tested(task, prompts, classes)`: accuracy by `predict` on a task's test images of these classes."""
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), run)
    return lambda task, prompts, classes: accuracy_of(model, images, task, prompts, classes)


def accuracy_of(model, images, task, prompts=None, classes=ALL):
    """Of `predict`, on a task's test images of some classes."""
    task_set = load_task_set("folder", images, seed=3)
    table = images_of_classes(task_set, dict.fromkeys(TASKS, classes))[TASKS.index(task)]
    found = model.predict([row["image"] for row in table], task=prompts or task, classes=classes, **statistics())
    right = [next(iter(each)) == classes[label] for each, label in zip(found, table["label"], strict=True)]
    return sum(right) / len(right)


def test_the_halves_of_a_task_set(images):
    task_set = load_task_set("folder", images, seed=3)
    base, new = base_classes(task_set), new_classes(task_set)
    assert base.class_names == dict.fromkeys(TASKS, BASE) and new == dict.fromkeys(TASKS, NEW)
    keys = task_set.tasks[0].test["key"]
    of_base, of_new = base.tasks[0].test, images_of_classes(task_set, new)[0]
    assert sorted([*of_base["key"], *of_new["key"]]) == sorted(keys)
    assert set(of_new["label"]) == {0} and all(key.startswith("my photos/sky") for key in of_new["key"])
    assert {key.split("/")[1] for key in of_base["key"]} == set(BASE) and set(of_base["label"]) == {0, 1}


def test_drawn_images_keep_their_drawing():
    task_set = load_task_set("shapes", shots=1, seed=1)
    drawn = images_of_classes(task_set, new_classes(task_set))[1]
    whole = task_set.tasks[1].test
    place = list(whole["key"]).index(drawn[0]["key"])
    assert drawn[0]["image"].tobytes() == whole[place]["image"].tobytes() and drawn[0]["label"] == 0


def test_training_on_base_classes_reports_new_ones_too(images, run, tested, tmp_path):
    assert json.loads((run / "adapter_config.json").read_text())["tasks"] == dict.fromkeys(TASKS, BASE)
    found = json.loads((run / "base_to_new.json").read_text())
    for task in TASKS:
        row = found[task]
        assert row["trained: base"] == pytest.approx(tested(task, task, BASE))
        assert row["trained: new"] == pytest.approx(tested(task, task, NEW))
    mean = found["mean"]
    assert mean["trained: base"] == pytest.approx(sum(found[task]["trained: base"] for task in TASKS) / 2)
    expected = harmonic_mean(mean["zero-shot: base"], mean["zero-shot: new"])
    assert mean["zero-shot: harmonic mean"] == pytest.approx(expected)
    again = evaluated(images, run, tmp_path / "again", "--split", "base_to_new", file="base_to_new")
    assert {name: again[name]["accuracy: new"] for name in TASKS} == {
        name: found[name]["trained: new"] for name in TASKS
    }
    assert "| **mean** |" in (tmp_path / "again" / "base_to_new.md").read_text()


def test_any_classes_are_chosen_among(images, run, tested, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("sky\npens & ink\n\nunicorn\n", encoding="utf-8")
    chosen = class_list(str(names))
    assert chosen == ["sky", "pens & ink", "unicorn"]
    found = evaluated(images, run, tmp_path / "out", "--classes", names)
    assert "Without test images, but to choose from: unicorn" in " ".join(capsys.readouterr().out.split())
    for task in TASKS:
        assert found["tasks"][task]["accuracy"] == pytest.approx(tested(task, task, chosen))
    image = next((images / "scans" / "sky").iterdir())
    predict.main(["--adapter", str(run), "--task", "scans", "--classes", "unicorn, sky", str(image)])
    printed = capsys.readouterr().out
    assert "unicorn" in printed and "sky" in printed and "red" not in printed


def test_prompts_of_a_task_on_images_of_another(images, run, tested, tmp_path):
    options = ("--split", "base_to_new", "--cross_domain")
    found = evaluated(images, run, tmp_path / "out", *options, file="cross_domain")
    assert {prompts: list(row) for prompts, row in found.items()} == {name: list(TASKS) for name in TASKS}
    for prompts, row in found.items():
        for task, accuracy in row.items():
            assert accuracy == pytest.approx(tested(task, prompts, BASE))
    assert found[TASKS[0]] != found[TASKS[1]]  # else nobody could tell whose prompts they are


@pytest.mark.parametrize("kind", ["own", "ensemble"])
def test_texts_of_the_task_set(images, tmp_path, kind):
    train.main(command(images, tmp_path / "out", *QUICK, "--max_steps", "1", "--templates", kind))
    template = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["class_template"]
    own = "a photo of a {}."
    expected = own if kind == "own" else [own, *GENERAL]
    assert [template[name] for name in TASKS] == [expected] * 2
    options = ["--method", "zero_shot", "--templates", kind, "--corruptions", "none"]
    evaluate.main(command(images, tmp_path / "zero", *options))
    found = json.loads((tmp_path / "zero" / "evaluation.json").read_text())["tasks"]
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    texts = {"class_template": template, "tokenizer_name_or_path": str(TINY_CLIP)}
    model = get_peft_model(clip, JSCPTConfig.for_method("zero_shot", tasks=dict.fromkeys(TASKS, ALL), **texts))
    assert found["scans"]["accuracy"] == pytest.approx(accuracy_of(model, images, "scans"))


def test_a_pipe_is_no_list_of_classes(tmp_path):
    os.mkfifo(tmp_path / "names.txt")  # which would never end
    with pytest.raises(ValueError, match=r"names.txt cannot be read \(.* is no regular file\)"):
        class_list(str(tmp_path / "names.txt"))


def test_harmonic_mean():
    assert harmonic_mean(0.8, 0.4) == pytest.approx(2 / (1 / 0.8 + 1 / 0.4)) and harmonic_mean(0, 0) == 0


def test_mistakes_are_told_in_a_line(images, run, tmp_path, capsys):
    named = command(images, tmp_path / "x", "--adapter", run, "--corruptions", "none")
    for arguments, message in (
        (["--classes", "cat,dog"], "`classes` ['cat', 'dog'] are none that task set 'folder' has test images of"),
        (["--classes", "sky,sky"], "names ['sky'] more than once"),
        (["--classes", tmp_path / "none.txt"], "none.txt cannot be read"),
        (["--templates", "ensemble"], "an adapter has its own texts: leave it out, or pass --method zero_shot"),
        (["--classes", " , "], "has no class names"),
        (["--classes", "sky", "--split", "base_to_new"], "`classes` is 'sky', but `split` 'base_to_new' says which"),
        ([], "(3 classes instead of 2): evaluate it on the classes it was trained for, or name others with --classes"),
        (["--split", "base_to_nwe"], "Did you mean 'base_to_new'?"),
    ):
        assert message in fails(capsys, evaluate.main, *named, *arguments)
