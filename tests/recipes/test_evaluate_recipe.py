"""`recipes/evaluate.py`, as a user has it, and the library that it shares its name with."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import evaluation
import fork_server
import numpy as np
import processes
import pytest
import torch
import train
import yaml
from arguments import DataArguments, parse
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image, ImageDraw
from subject import SubjectArguments, default_model
from transformers import CLIPImageProcessorPil, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.assets import TINY_CLIP
from jscpt_peft.data import load_task_set, read_column
from jscpt_peft.data.corruptions import CORRUPTIONS, corrupt
from jscpt_peft.evaluation import reliability
from jscpt_peft.model.encoder import PromptedText

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
CLASSES = {"circle": "red", "diamond": "yellow", "square": "blue"}
TASKS = ("my photos", "scans")
PICTURES = ["accuracy.png", "confusion.png", "reliability.png"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two tasks of three classes, easy to confuse, in several sizes."""
    root, rng = tmp_path_factory.mktemp("pictures"), random.Random(1)
    for task in TASKS:
        for name, colour in CLASSES.items():
            folder = root / task / name
            folder.mkdir(parents=True)
            for number in range(14):
                size = rng.choice([(64, 64), (90, 70), (40, 50)])
                image = Image.new("RGB", size, rng.choice(["white", "gray", colour]))
                ImageDraw.Draw(image).ellipse([5, 5, rng.randrange(20, 40), 35], fill=rng.choice([colour, "green"]))
                image.save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that knows the tasks in another order, and one more."""
    return save_adapter(tmp_path_factory.mktemp("adapter"), {name: list(CLASSES) for name in ("more", *TASKS[::-1])})


def save_adapter(folder, tasks):
    config = JSCPTConfig(tasks=tasks, num_shared_tokens=1, num_task_tokens=2, class_template="a photo of a {}.")
    model = get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".jscpt_" in name:
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def run(pictures, output, *arguments):
    """What a run on the folder writes, as JSON."""
    folder = ["--task_set", "folder", "--data_root", str(pictures), "--use_cpu", "--seed", "3"]
    evaluation.main([*folder, "--output_dir", str(output), *map(str, arguments)])
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))


def fails(capsys, *arguments):
    """The message with which the command ends."""
    with pytest.raises(SystemExit) as stop:
        evaluation.main([str(each) for each in arguments])
    assert stop.value.code not in (0, None)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return " ".join((captured.out + captured.err).split())


# ---- what it says is so ---------------------------------------------------------------------------------------------


def test_every_figure_is_that_of_predict(pictures, adapter, tmp_path):
    chosen = ["fog", "gaussian_noise"]
    options = ["--corruptions", "fog, gaussian_noise", "--corruption_images", "5", "--per_device_eval_batch_size", "4"]
    found = run(pictures, tmp_path / "out", "--adapter", adapter, *options)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {*PICTURES, "robustness.png", "corruptions.png"}

    processor = CLIPImageProcessorPil.from_pretrained(TINY_CLIP)
    statistics = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), adapter)
    robust = found["robustness"]
    assert list(robust["corruptions"]) == chosen
    for task in load_task_set("folder", pictures, seed=3):
        images, labels, keys = task.test["image"], task.test["label"], read_column(task.test, "key")

        def correct(images, labels, task=task):
            answers = [next(iter(each)) for each in model.predict(images, task.name, **statistics)]
            return [task.class_names.index(name) == label for name, label in zip(answers, labels, strict=True)]

        figures = found["tasks"][task.name]
        assert figures["images"] == len(images) == 12
        assert figures["accuracy"] == np.mean(correct(images, labels))
        confidences = [next(iter(each.values())) for each in model.predict(images, task.name, **statistics)]
        error = reliability(confidences, correct(images, labels)).expected_calibration_error
        assert figures["expected_calibration_error"] == pytest.approx(error, abs=1e-5)

        # Some five of the test images under corruptions of their own keys, and the same five without.
        def under(name, severity, rows, images=images, keys=keys):
            return [corrupt(images[row], name, severity, 3, keys[row], processor.crop_size["height"]) for row in rows]

        rows = evaluation.chosen_rows(task, 5, 3)
        assert len(set(rows)) == 5
        own = [labels[row] for row in rows]
        assert robust["uncorrupted"]["tasks"][task.name] == np.mean(correct([images[row] for row in rows], own))
        for name in chosen:
            for severity in (1, 2, 3):
                value = robust["corruptions"][name][str(severity)]["tasks"][task.name]
                assert value == np.mean(correct(under(name, severity, rows), own))


def test_images_under_corruption_are_drawn_by_seed_and_nested(pictures):
    task = load_task_set("folder", pictures, seed=3).tasks[1]
    few, more, others = (set(evaluation.chosen_rows(task, *each)) for each in ((4, 3), (9, 3), (4, 4)))
    assert few < more
    assert few != others
    assert list(evaluation.chosen_rows(task, 100, 3)) == list(range(12))


def test_zero_shot_is_what_training_starts_from(pictures, tmp_path):
    found = run(pictures, tmp_path / "out", "--method", "zero_shot", "--corruptions", "none")
    assert found["robustness"] is None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*PICTURES, "evaluation.json", "evaluation.md", "manifest.json"}
    folder = ["--task_set", "folder", "--data_root", str(pictures), "--use_cpu", "--seed", "3", "--max_steps", "1"]
    quick = ["--per_device_train_batch_size", "2", "--eval_strategy", "no", "--num_shared_tokens", "1"]
    train.main([*folder, *quick, "--output_dir", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for name in TASKS:
        assert found["tasks"][name]["accuracy"] == results["tasks"][name]["zero_shot"]
    assert found["worst_group"] is None

    trained = run(pictures, tmp_path / "trained", "--adapter", tmp_path / "run", "--corruptions", "none")
    for name in TASKS:
        assert trained["tasks"][name]["accuracy"] == results["tasks"][name]["trained"]
    assert trained["subject"]["adapter"] == str(tmp_path / "run")


def test_class_features_are_computed_once(pictures, adapter, tmp_path, monkeypatch):
    calls = []
    encode = PromptedText.pooled
    monkeypatch.setattr(PromptedText, "pooled", lambda *args: calls.append(1) or encode(*args))
    options = ["--corruptions", "jpeg", "--corruption_images", "3", "--per_device_eval_batch_size", "4"]
    run(pictures, tmp_path / "out", "--adapter", adapter, *options)
    assert 1 <= len(calls) <= 3  # at most once for each of the adapter's tasks, whatever the number of batches


def test_bf16_is_near(pictures, adapter, tmp_path):
    whole, half = (
        run(pictures, tmp_path / str(number), "--adapter", adapter, "--corruptions", "none", *option)["tasks"]
        for number, option in enumerate(([], ["--bf16"]))
    )
    errors = [[each[name]["expected_calibration_error"] for name in TASKS] for each in (whole, half)]
    assert errors[0] != errors[1]
    assert errors[0] == pytest.approx(errors[1], abs=0.1)


def test_configuration_file_of_training_serves_again(pictures, adapter, tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    settings = {"task_set": "folder", "data_root": str(pictures), "num_shared_tokens": 7, "learning_rate": 0.01}
    settings |= {"eval_strategy": "epoch", "save_strategy": "epoch", "class_template": "{}", "use_cpu": True}
    config.write_text(yaml.safe_dump(settings))
    output = tmp_path / "out"
    evaluation.main([str(config), "--adapter", str(adapter), "--output_dir", str(output), "--corruptions", "none"])
    assert sorted(path.name for path in output.iterdir() if path.suffix == ".png") == PICTURES
    assert "is not empty: choose another, or pass --overwrite_output_dir" in fails(
        capsys, config, "--adapter", adapter, "--output_dir", output
    )
    config.write_text("num_shared_token: 7\n")
    assert "unknown argument 'num_shared_token'. Did you mean 'num_shared_tokens'?" in fails(capsys, config)


def test_base_model_of_an_adapter_is_its_own_whatever_the_task_set_is_trained_with():
    _, subject, arguments = evaluation.parse(
        (DataArguments, SubjectArguments, evaluation.EvaluationArguments),
        "",
        ["--task_set", "office_home", "--output_dir", "x"],
        left_out=evaluation.OF_TRAINING,
    )
    assert subject.model_name_or_path is None
    assert arguments.dataloader_num_workers == 4  # the rest of the task set's own file counts
    assert default_model("office_home") == "openai/clip-vit-base-patch16"
    assert default_model("shapes") == str(TINY_CLIP)


# ---- wrong arguments ------------------------------------------------------------------------------------------------


def test_wrong_arguments_give_one_clear_line(pictures, adapter, tmp_path, capsys):
    folder = ["--task_set", "folder", "--data_root", pictures, "--use_cpu", "--output_dir", tmp_path / "out"]
    named = [*folder, "--adapter", adapter]
    for arguments, message in (
        (folder, "`adapter` is missing: name the folder or Hub id of one, or pass --method zero_shot"),
        ([*folder, "--adapter", tmp_path], "Can't find 'adapter_config.json' at"),
        ([*named, "--method", "zero_shot"], "but --method zero_shot has none: leave out one"),
        ([*named, "--method", "zeroshot"], "`method` must be one of 'adapter', 'zero_shot', got 'zeroshot'. Did you"),
        ([*named, "--corruptions", "fog,jepg"], "got 'jepg'. Did you mean 'jpeg'?"),
        ([*named, "--corruption_images", "0"], "`corruption_images` must be at least 1, got 0"),
        ([*named, "--adaptor", "x"], "unknown argument '--adaptor'. Did you mean 'adapter'?"),
    ):
        assert message in fails(capsys, *arguments)


def test_adapter_of_other_tasks_or_classes_is_refused(pictures, tmp_path, capsys):
    folder = ["--task_set", "folder", "--data_root", pictures, "--use_cpu", "--output_dir", tmp_path / "out"]
    right = list(CLASSES)
    for number, (tasks, message) in enumerate(
        (
            (
                {"my photo": right, "scans": right},
                "has no task 'my photos': its tasks are my photo, scans. Did you mean",
            ),
            (
                {"my photos": right, "scans": right[::-1]},
                "class 0 of task 'scans' is 'circle' in task set 'folder' and 'square' in `adapter`",
            ),
            (
                {"my photos": right, "scans": right[:2]},
                "class 2 of task 'scans' is 'square' in task set 'folder' and missing",
            ),
            (
                {"my photos": right, "scans": [*right, "d"]},
                "class 3 of task 'scans' is missing in task set 'folder' and 'd'",
            ),
        )
    ):
        adapter = save_adapter(tmp_path / str(number), tasks)
        assert message in fails(capsys, *folder, "--adapter", adapter)
    lora = get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    assert "is described by a LoraConfig, not by a JSCPTConfig" in fails(
        capsys, *folder, "--adapter", tmp_path / "lora"
    )
    broken = tmp_path / "0"
    (broken / "adapter_config.json").write_text('{"peft_type": "NOPE"}')
    assert "its adapter_config.json is no JSCPT adapter's (KeyError" in fails(capsys, *folder, "--adapter", broken)


def test_a_training_configuration_publishes_nothing(tmp_path):
    """`push_to_hub` in a YAML that also serves training is not for an evaluation."""
    path = tmp_path / "mine.yaml"
    path.write_text("push_to_hub: true\nhub_model_id: user/name\neval_strategy: epoch\n")
    kinds = (DataArguments, SubjectArguments, evaluation.EvaluationArguments)
    arguments = parse(kinds, "", [str(path), "--output_dir", str(tmp_path)], left_out=evaluation.OF_TRAINING)[2]
    assert not arguments.push_to_hub


# ---- the library of the same name -----------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["from evaluate import Metric", "import evaluate.module"])
def test_the_library_is_found_where_recipes_come_first(statement):
    script = f"{statement}; import sys, evaluate; from jscpt_peft.evaluation import MultiTaskAccuracy; "
    script += "print(evaluate.__version__, evaluate.__file__, sys.path[0] == '')"
    process = subprocess.run([sys.executable, "-c", script], cwd=RECIPES, capture_output=True, text=True, check=True)
    version, file, unchanged = process.stdout.split()
    assert version >= "0.4"
    assert Path(file).parent != RECIPES
    assert unchanged == "True"


@pytest.mark.parametrize("recipe", ["train.py", "evaluate.py", "benchmark.py"])
def test_recipes_start_from_the_command_line(recipe, tmp_path):
    done = fork_server.run([sys.executable, str(RECIPES / recipe), "--help"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def launch(count, output):
    program = [str(RECIPES / "evaluate.py"), "--method", "zero_shot", "--task_set", "shapes", "--use_cpu"]
    program += ["--output_dir", str(output), "--corruptions", "contrast", "--corruption_images", "7"]
    codes = processes.wait(processes.launch(count, output.with_suffix(".logs"), program))
    said = "".join(processes.output(output.with_suffix(".logs"), rank) for rank in range(count))
    assert codes == [0] * count, said
    assert said.count("Written to") == 1
    return json.loads((output / "evaluation.json").read_text())


@pytest.mark.slow
def test_two_launched_processes_find_what_one_does(tmp_path):
    found, by_two = (launch(count, tmp_path / str(count)) for count in (1, 2))
    assert [task["images"] for task in found["tasks"].values()] == [400] * 4
    assert found["mean"]["accuracy"] == pytest.approx(0.437, abs=0.001)  # what the README says of zero-shot CLIP
    assert found["worst_group"]["accuracy"] == min(group["accuracy"] for group in found["groups"])
    assert len(found["groups"]) == 8
    assert list(found["robustness"]["corruptions"]) == ["contrast"]
    for each in (*found["tasks"], "mean"):
        one, two = (result["mean"] if each == "mean" else result["tasks"][each] for result in (found, by_two))
        assert one == pytest.approx(two, abs=1e-6)  # confidences differ in the last bits
    for name in ("groups", "worst_group", "confusion_of_worst_task", "robustness"):
        assert found[name] == by_two[name]


def test_all_means_every_corruption():
    arguments = evaluation.EvaluationArguments(output_dir="x", use_cpu=True)
    assert arguments.chosen_corruptions == CORRUPTIONS
