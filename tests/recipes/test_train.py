"""The command line, as a user has it: folders of pictures, wrong arguments, configuration files, resume."""

from __future__ import annotations

import json
import random
import shutil

import predict
import pytest
import task_data
import train
import yaml
from arguments import ModelArguments, parse
from paths import TINY_CLIP
from peft import PeftModel
from PIL import Image, ImageDraw
from task_data import DataArguments
from transformers import CLIPModel

from jscpt_peft.evaluation import read_history
from jscpt_peft.training import JSCPTTrainingArguments

QUICK = ["--max_steps", "4", "--lower_steps", "2", "--per_device_train_batch_size", "3", "--use_cpu", "--seed", "3"]
QUICK += ["--num_shared_tokens", "2", "--num_task_tokens", "2", "--logging_steps", "2", "--eval_strategy", "no"]
CLASSES = {"pens & ink": "black", "red things": "red", "sky": "blue"}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two tasks of three classes, names with spaces and `&`, all kinds of pictures."""
    root, rng = tmp_path_factory.mktemp("pictures"), random.Random(1)
    kinds = [("RGB", "jpg"), ("P", "gif"), ("L", "png"), ("RGBA", "webp"), ("RGB", "bmp")]
    for task in ("my photos", "scans"):
        for name, colour in CLASSES.items():
            folder = root / task / name
            folder.mkdir(parents=True)
            for number in range(10):
                image = Image.new("RGB", (rng.randrange(30, 90), rng.randrange(30, 90)), colour)
                ImageDraw.Draw(image).ellipse([5, 5, 20, 20], fill="white")
                mode, suffix = kinds[number % len(kinds)]
                image.convert(mode).save(folder / f"{number}.{suffix}")
    return root


@pytest.fixture(scope="session")
def finished_run(pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    train.main(["--task_set", "folder", "--data_root", str(pictures), "--output_dir", str(output), *QUICK])
    return output


def fails(capsys, *arguments):
    """The message with which the command ends."""
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments])
    assert stop.value.code not in (0, None)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return " ".join((captured.out + captured.err).split())


def test_everything_is_written(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "manifest.json", "results.json", "results.md"} <= names
    assert {"losses.png", "weights.png", "affinity.png", "causal_effects.png", "scheduler_history.jsonl"} <= names
    assert not names & {"model.safetensors", "pytorch_model.bin"}
    assert len(read_history(finished_run / "scheduler_history.jsonl")) == 4
    results = json.loads((finished_run / "results.json").read_text())
    assert "my photos" in json.dumps(results)
    assert "| my photos |" in (finished_run / "results.md").read_text()
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert set(manifest["tasks"]) == {"my photos", "scans"}


def test_adapter_loads_again_and_predicts(finished_run, pictures, capsys):
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), finished_run)
    path = next((pictures / "scans" / "sky").iterdir())
    prediction = model.predict(Image.open(path), task="scans")[0]
    assert set(prediction) == set(CLASSES)
    predict.main(["--adapter", str(finished_run), "--task", "scans", str(path), "--top", "1"])
    printed = capsys.readouterr().out
    best, probability = next(iter(prediction.items()))
    assert f"{best} {probability:.1%}" in " ".join(printed.split())


def test_split_is_used_again(finished_run, pictures, tmp_path):
    arguments = ["--task_set", "folder", "--data_root", str(pictures), *QUICK, "--seed", "9"]
    manifest = finished_run / "manifest.json"
    train.main([*arguments, "--output_dir", str(tmp_path / "again"), "--manifest", str(manifest), "--max_steps", "1"])
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert again["tasks"] == json.loads(manifest.read_text())["tasks"]


def test_resume_from_the_last_checkpoint(pictures, tmp_path, capsys):
    arguments = ["--task_set", "folder", "--data_root", str(pictures), "--output_dir", str(tmp_path / "run"), *QUICK]
    train.main([*arguments, "--save_strategy", "steps", "--save_steps", "2"])
    whole = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    train.main([*arguments, "--resume_from_checkpoint", "last"])
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == whole
    assert [row["step"] for row in read_history(tmp_path / "run" / "scheduler_history.jsonl")] == [1, 2, 3, 4]
    assert "is 'last', but" in fails(
        capsys, "--output_dir", str(tmp_path / "other"), "--resume_from_checkpoint", "last"
    )


class TestArguments:
    def parsed(self, *arguments):
        return parse((DataArguments, ModelArguments, JSCPTTrainingArguments), "", list(arguments))

    def test_command_line_beats_file_beats_task_set(self, tmp_path):
        config = tmp_path / "mine.yaml"
        config.write_text(yaml.safe_dump({"num_shared_tokens": 5, "num_task_tokens": 6, "output_dir": "x"}))
        data, model, training = self.parsed(str(config), "--num_task_tokens", "7")
        assert (model.num_shared_tokens, model.num_task_tokens, training.output_dir) == (5, 7, "x")
        own = yaml.safe_load((train.Path(train.__file__).parent / "configs" / "shapes.yaml").read_text())
        assert data.task_set == "shapes"
        assert training.learning_rate == own["learning_rate"]
        assert self.parsed(str(config), "--learning_rate", "0.5")[2].learning_rate == 0.5

    @pytest.mark.parametrize("option", [["--task_set", "dtd"], ["--task-set", "dtd"], ["--task_set=food101,dtd"]])
    def test_every_spelling_of_the_task_set_finds_its_settings(self, option):
        for arguments in (option, ["--task_set", "shapes", *option]):  # the last one counts
            data, model, training = self.parsed(*arguments, "--output_dir", "x")
            assert data.task_set.endswith("dtd")
            assert model.model_name_or_path == "openai/clip-vit-base-patch16"
            assert training.per_device_train_batch_size == 32

    def test_paper_values_where_a_task_set_has_none(self):
        _, model, training = self.parsed("--task_set", "folder", "--output_dir", "x")
        assert (training.learning_rate, training.momentum, training.num_train_epochs) == (0.0015, 0.9, 50)
        assert (training.lower_steps, training.neumann_terms, training.per_device_train_batch_size) == (10, 3, 16)
        assert (model.num_shared_tokens, model.num_task_tokens, model.prompt_depth) == (16, 16, None)

    def test_json_file(self, tmp_path):
        config = tmp_path / "mine.json"
        config.write_text(json.dumps({"shots": 3, "output_dir": "x"}))
        assert self.parsed(str(config))[0].shots == 3

    def test_unknown_argument_in_a_file(self, tmp_path, capsys):
        config = tmp_path / "mine.yaml"
        config.write_text("learning_rat: 1\n")
        assert "unknown argument 'learning_rat'. Did you mean 'learning_rate'?" in fails(capsys, str(config))

    def test_missing_file(self, capsys):
        assert "missing.yaml does not exist" in fails(capsys, "missing.yaml")

    def test_help_shows_this_projects_arguments_first(self, capsys):
        with pytest.raises(SystemExit) as stop:
            self.parsed("--help")
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "--task_set" in text and "--neumann_terms" in text and "--deepspeed" not in text
        with pytest.raises(SystemExit):
            self.parsed("--help_all")
        assert "--deepspeed" in capsys.readouterr().out


class TestBadInput:
    def test_task_set_with_a_typo(self, capsys, tmp_path):
        message = fails(capsys, "--task_set", "shape", "--output_dir", str(tmp_path / "x"))
        assert "'shape'" in message and "Did you mean 'shapes'?" in message

    def test_missing_data_root(self, capsys, tmp_path):
        message = fails(capsys, "--task_set", "folder", "--output_dir", str(tmp_path / "x"))
        assert "`data_root`" in message and "ROOT/<task>/<class>/" in message
        message = fails(
            capsys, "--task_set", "folder", "--data_root", str(tmp_path / "none"), "--output_dir", str(tmp_path / "y")
        )
        assert str(tmp_path / "none") in message.replace(" ", "") or "none" in message

    def test_processes_with_other_images(self, capsys, pictures, tmp_path, monkeypatch):
        monkeypatch.setattr(task_data, "gather_objects", lambda digest: [digest, "another"])
        data = ["--task_set", "folder", "--data_root", str(pictures), "--output_dir", str(tmp_path / "out"), *QUICK]
        assert "`task_set` 'folder' has other images in some processes than in others" in fails(capsys, *data)

    def test_output_directory_in_use(self, capsys, finished_run):
        message = fails(capsys, "--output_dir", str(finished_run))
        assert "is not empty" in message and "--overwrite_output_dir" in message

    def test_unreadable_picture_is_named(self, pictures, capsys, tmp_path):
        root = tmp_path / "pictures"
        shutil.copytree(pictures, root)
        whole = (root / "scans" / "sky" / "0.jpg").read_bytes()
        for path in (root / "scans" / "sky").iterdir():
            path.write_bytes(whole[: len(whole) // 2])
            path.rename(path.with_suffix(".jpg"))
        arguments = ["--task_set", "folder", "--data_root", str(root), *QUICK]
        message = fails(capsys, *arguments, "--output_dir", str(tmp_path / "x"))
        assert "sky" in message and "cannot be read" in message

    def test_unreadable_pictures_are_skipped_where_that_is_asked_for(self, pictures, tmp_path, caplog):
        root = tmp_path / "pictures"
        shutil.copytree(pictures, root)
        broken = [root / "scans" / "sky" / name for name in ("2.png", "7.png")]
        for path in broken:
            path.write_bytes(path.read_bytes()[:60])
        arguments = ["--task_set", "folder", "--data_root", str(root), *QUICK, "--output_dir", str(tmp_path / "x")]
        train.main([*arguments, "--skip_bad_images"])
        assert "Skipped 2 unreadable images" in caplog.text and "scans/sky/7.png" in caplog.text
        manifest = (tmp_path / "x" / "manifest.json").read_text()
        assert "scans/sky/2.png" not in manifest and "scans/sky/0.jpg" in manifest

    def test_no_base_model(self, capsys, pictures, tmp_path):
        message = fails(
            capsys,
            *("--task_set", "folder", "--data_root", str(pictures), "--output_dir", str(tmp_path / "x")),
            *("--model_name_or_path", str(tmp_path / "no-clip")),
        )
        assert "no-clip" in message

    def test_unknown_task_in_prediction(self, finished_run, pictures, capsys):
        path = next((pictures / "scans" / "sky").iterdir())
        with pytest.raises(SystemExit):
            predict.main(["--adapter", str(finished_run), "--task", "scan", str(path)])
        assert "Did you mean 'scans'?" in " ".join(capsys.readouterr().out.split())

    def test_missing_and_unreadable_picture_in_prediction(self, finished_run, tmp_path, capsys):
        (tmp_path / "text.png").write_text("no picture")
        for name, message in {"none.png": "does not exist", "text.png": "cannot be read"}.items():
            with pytest.raises(SystemExit):
                predict.main(["--adapter", str(finished_run), "--task", "scans", str(tmp_path / name)])
            printed = " ".join(capsys.readouterr().out.split())
            assert name in printed and message in printed
