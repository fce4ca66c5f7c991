"""`recipes/evaluate.py`, as a user has it, and the library that it shares its name with."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import processes
import pytest
import task_data
import train
import yaml
from arguments import parse
from evaluated_model import EvaluatedModelArguments
from paths import RECIPES, TINY_CLIP, load_recipe
from peft import LoraConfig, PeftModel, get_peft_model
from recipe_runs import CLASSES, TASKS, fails, save_adapter, statistics
from recipe_runs import on_folder as command
from task_data import DataArguments
from transformers import CLIPModel

from jscpt_peft.data import load_task_set, read_column
from jscpt_peft.data.corruptions import CORRUPTIONS, corrupt
from jscpt_peft.evaluation import reliability
from jscpt_peft.model.backbones.clip_text import PromptedCLIPText

evaluate = load_recipe("evaluate")
FIGURES = ["accuracy.png", "confusion.png", "reliability.png"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that knows the tasks in another order, and one more."""
    return save_adapter(tmp_path_factory.mktemp("adapter"), {name: list(CLASSES) for name in ("more", *TASKS[::-1])})


def run(images, output, *more):
    """What a run on the folder writes, as JSON."""
    evaluate.main(command(images, output, *more))
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))


# ---- what it says is so ---------------------------------------------------------------------------------------------


def test_every_number_is_that_of_predict(images, adapter, tmp_path):
    chosen = CORRUPTIONS[:2]
    options = ["--corruptions", ", ".join(chosen), "--corruption_images", "5", "--per_device_eval_batch_size", "4"]
    found = run(images, tmp_path / "out", "--adapter", adapter, *options)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {*FIGURES, "robustness.png", "corruptions.png"}

    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), adapter)
    robust = found["robustness"]
    assert tuple(robust["corruptions"]) == chosen
    for task in load_task_set("folder", images, seed=3):
        tested, labels, keys = task.test["image"], task.test["label"], read_column(task.test, "key")

        def correct(images, labels, task=task):
            predictions = [next(iter(each)) for each in model.predict(images, task.name, **statistics())]
            return [task.class_names.index(name) == label for name, label in zip(predictions, labels, strict=True)]

        numbers = found["tasks"][task.name]
        assert numbers["images"] == len(tested) == 12
        assert numbers["accuracy"] == np.mean(correct(tested, labels))
        confidences = [next(iter(each.values())) for each in model.predict(tested, task.name, **statistics())]
        error = reliability(confidences, correct(tested, labels)).expected_calibration_error
        assert numbers["expected_calibration_error"] == pytest.approx(error, abs=1e-5)

        # Some five of the test images under corruptions of their own keys, and the same five without.
        rows = evaluate.chosen_rows(task, 5, 3)
        assert len(set(rows)) == 5
        own = [labels[row] for row in rows]
        assert robust["uncorrupted"]["tasks"][task.name] == np.mean(correct([tested[row] for row in rows], own))
        for name in chosen:
            for severity in (1, 2, 3):
                under = [corrupt(tested[row], name, severity, 3, keys[row], 64) for row in rows]
                assert robust["corruptions"][name][str(severity)]["tasks"][task.name] == np.mean(correct(under, own))


def test_images_under_corruption_are_drawn_by_seed_and_nested(images):
    task = load_task_set("folder", images, seed=3).tasks[1]
    few, more, others = (set(evaluate.chosen_rows(task, *each)) for each in ((4, 3), (9, 3), (4, 4)))
    assert few < more
    assert few != others
    assert list(evaluate.chosen_rows(task, 100, 3)) == list(range(12))


def test_zero_shot_is_what_training_starts_from(images, tmp_path):
    found = run(images, tmp_path / "out", "--method", "zero_shot", "--corruptions", "none")
    assert found["robustness"] is None and found["worst_group"] is None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*FIGURES, "evaluation.json", "evaluation.md", "manifest.json"}
    quick = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--eval_strategy", "no"]
    train.main(command(images, tmp_path / "run", *quick, "--num_shared_tokens", "1"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]
    trained = run(images, tmp_path / "trained", "--adapter", tmp_path / "run", "--corruptions", "none")
    for name in TASKS:
        assert found["tasks"][name]["accuracy"] == results[name]["zero_shot"]
        assert trained["tasks"][name]["accuracy"] == results[name]["trained"]
    assert trained["subject"]["adapter"] == str(tmp_path / "run")


def test_class_features_are_computed_once(images, adapter, tmp_path, monkeypatch):
    calls = []
    encode = PromptedCLIPText.pooled
    monkeypatch.setattr(PromptedCLIPText, "pooled", lambda *args: calls.append(1) or encode(*args))
    options = ["--corruptions", CORRUPTIONS[0], "--corruption_images", "3", "--per_device_eval_batch_size", "4"]
    run(images, tmp_path / "out", "--adapter", adapter, *options)
    assert 1 <= len(calls) <= 3  # at most once for each of the adapter's tasks, whatever the number of batches


def test_bf16_is_near(images, adapter, tmp_path):
    whole, half = (
        run(images, tmp_path / str(number), "--adapter", adapter, "--corruptions", "none", *option)["tasks"]
        for number, option in enumerate(([], ["--bf16"]))
    )
    errors = [[each[name]["expected_calibration_error"] for name in TASKS] for each in (whole, half)]
    assert errors[0] != errors[1]
    assert errors[0] == pytest.approx(errors[1], abs=0.1)


def test_a_configuration_file_of_training_serves_again(images, adapter, tmp_path, capsys):
    """What it says of training and publishing is not for an evaluation."""
    config = tmp_path / "mine.yaml"
    settings = {"task_set": "folder", "data_root": str(images), "num_shared_tokens": 7, "learning_rate": 0.01}
    settings |= {"eval_strategy": "epoch", "save_strategy": "epoch", "class_template": "{}", "use_cpu": True}
    settings |= {"push_to_hub": True, "hub_model_id": "user/name"}
    config.write_text(yaml.safe_dump(settings))
    output = tmp_path / "out"
    evaluate.main([str(config), "--adapter", str(adapter), "--output_dir", str(output), "--corruptions", "none"])
    assert sorted(path.name for path in output.iterdir() if path.suffix == ".png") == FIGURES
    again = fails(capsys, evaluate.main, config, "--adapter", adapter, "--output_dir", output)
    assert "is not empty: choose another, or pass --overwrite_output_dir" in again
    config.write_text("num_shared_token: 7\n")
    message = fails(capsys, evaluate.main, config)
    assert "unknown argument 'num_shared_token'. Did you mean 'num_shared_tokens'?" in message


def test_the_base_model_of_an_adapter_is_its_own_whatever_the_task_set_is_trained_with():
    kinds = (DataArguments, EvaluatedModelArguments, evaluate.EvaluationArguments)
    words = ["--task_set", "office_home", "--output_dir", "x"]
    _, model_arguments, arguments = parse(kinds, "", words, left_out=evaluate.OF_TRAINING)
    assert model_arguments.model_name_or_path is None
    assert arguments.per_device_train_batch_size == 16  # the rest of the task set's own file counts
    assert arguments.chosen_corruptions == CORRUPTIONS


# ---- wrong arguments ------------------------------------------------------------------------------------------------


def test_wrong_arguments_give_one_clear_line(images, adapter, tmp_path, capsys):
    folder = command(images, tmp_path / "out")
    named = [*folder, "--adapter", adapter]
    for arguments, message in (
        (folder, "`adapter` is missing: name the folder or Hub id of one, or pass --method zero_shot"),
        ([*folder, "--adapter", tmp_path], "Can't find 'adapter_config.json' at"),
        ([*named, "--method", "zero_shot"], "but --method zero_shot has none: leave out one"),
        ([*named, "--method", "zeroshot"], "`method` must be one of 'adapter', 'zero_shot', got 'zeroshot'. Did you"),
        ([*named, "--corruptions", "jpeg,contrats"], "got 'contrats'. Did you mean 'contrast'?"),
        ([*named, "--corruption_images", "0"], "`corruption_images` must be at least 1, got 0"),
        ([*named, "--adaptor", "x"], "unknown argument '--adaptor'. Did you mean 'adapter'?"),
    ):
        assert message in fails(capsys, evaluate.main, *arguments)


def test_an_adapter_of_other_tasks_or_classes_is_refused(images, tmp_path, capsys):
    folder, right = command(images, tmp_path / "out"), list(CLASSES)
    photos, scans = TASKS
    for tasks, message in (
        ({"my photo": right, scans: right}, "has no task 'my photos': its tasks are my photo, scans. Did you mean"),
        ({photos: right, scans: right[::-1]}, "(label 0 is 'pens & ink' instead of 'sky')"),
        ({photos: right, scans: right[:2]}, "(3 classes instead of 2)"),
    ):
        adapter = save_adapter(tmp_path / "adapter", tasks)
        assert message in fails(capsys, evaluate.main, *folder, "--adapter", adapter)
    lora = get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    message = fails(capsys, evaluate.main, *folder, "--adapter", tmp_path / "lora")
    assert "its `peft_type` is 'LORA', not 'JSCPT'" in message


# ---- processes ------------------------------------------------------------------------------------------------------


SHAPES = ["--method", "zero_shot", "--task_set", "shapes", "--use_cpu"]
SHAPES += ["--corruptions", "contrast", "--corruption_images", "7"]
# The recipe, with two drawn test images per class and task.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(RECIPES)!r})
import evaluate, task_data
load = task_data.load_task_set
task_data.load_task_set = lambda *words, **options: load(*words, test_per_class=2, **options)
evaluate.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_launched_processes_find_what_one_does(tmp_path, monkeypatch):
    launched = processes.launch(2, tmp_path, ["-c", PROGRAM, *SHAPES, "--output_dir", str(tmp_path / "two")])
    monkeypatch.setattr(task_data, "load_task_set", partial(task_data.load_task_set, test_per_class=2))
    evaluate.main([*SHAPES, "--output_dir", str(tmp_path / "one")])
    codes = processes.wait(launched)
    said = "".join(processes.output(tmp_path, rank) for rank in range(2))
    assert codes == [0, 0] and said.count("Written to") == 1, said
    found, by_two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert [task["images"] for task in found["tasks"].values()] == [32] * 4
    assert found["worst_group"]["accuracy"] == min(group["accuracy"] for group in found["groups"])
    assert len(found["groups"]) == 8
    assert list(found["robustness"]["corruptions"]) == ["contrast"]
    assert found["mean"] == pytest.approx(by_two["mean"], abs=1e-6)  # confidences differ in the last bits
    for name in found["tasks"]:
        assert found["tasks"][name] == pytest.approx(by_two["tasks"][name], abs=1e-6)
    for name in ("groups", "worst_group", "confusion_of_worst_task", "robustness"):
        assert found[name] == by_two[name]
