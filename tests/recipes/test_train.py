"""`recipes/train.py`, as a user has it: folders of images, resume, trackers, wrong arguments and data."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import task_data
import train
from recipe_runs import QUICK, draw_images, fails, on_folder

from jscpt_peft.evaluation import read_history
from jscpt_peft.training.evaluating import EvaluatingTrainer


@pytest.fixture(scope="module")
def finished_run(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    train.main(command(images, output, "--report_to", "tensorboard", "--logging_steps", "1"))
    return output


def command(images, output, *more):
    return on_folder(images, output, *QUICK, *more)


def test_everything_is_written(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "manifest.json", "results.json", "results.md"} <= names
    assert {"losses.png", "weights.png", "affinity.png", "causal_effects.png", "scheduler_history.jsonl"} <= names
    assert not names & {"model.safetensors", "pytorch_model.bin"}
    assert len(read_history(finished_run / "scheduler_history.jsonl")) == 4
    assert set(json.loads((finished_run / "results.json").read_text())["tasks"]) == {"my photos", "scans"}
    assert "| my photos |" in (finished_run / "results.md").read_text()
    assert set(json.loads((finished_run / "manifest.json").read_text())["tasks"]) == {"my photos", "scans"}


def test_without_validation_images_there_is_no_evaluation_while_training(tmp_path):
    """Folders `train` and `test` alone: D_dev comes from training images."""
    drawn, root = draw_images(tmp_path / "drawn", suffix="png"), tmp_path / "images"
    for path in drawn.rglob("*.png"):
        task, name = path.parts[-3:-1]
        folder = root / task / ("test" if int(path.stem) < 3 else "train") / name
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    train.main(command(root, tmp_path / "out"))
    assert (tmp_path / "out" / "results.md").exists()


def test_events_for_tensorboard_are_in_the_output_directory(finished_run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    scalars = {}
    for file in finished_run.rglob("events.out.tfevents.*"):
        events = event_accumulator.EventAccumulator(str(file))
        events.Reload()
        scalars |= {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(scalars["train/weight/my photos"]) == 4
    assert len(scalars["train/scheduler/hypergradient_norm"]) == 2
    # The accuracies after training, not those of zero-shot CLIP.
    for name, row in json.loads((finished_run / "results.json").read_text())["tasks"].items():
        assert scalars[f"test/accuracy/{name}"] == [pytest.approx(row["trained"])]


def test_split_is_used_again(finished_run, images, tmp_path):
    manifest = finished_run / "manifest.json"
    train.main(command(images, tmp_path / "again", "--seed", "9", "--manifest", manifest, "--max_steps", "1"))
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert again["tasks"] == json.loads(manifest.read_text())["tasks"]


def test_another_method_trains(images, tmp_path):
    words = command(images, tmp_path, "--max_steps", "2", "--method", "mt_crl", "--num_modules", "3")
    train.main(words)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["method"], config["intervention"], config["num_modules"]) == ("mt_crl", "modular", 3)
    assert (tmp_path / "modules.png").exists() and not (tmp_path / "affinity.png").exists()


def test_resume_from_the_last_checkpoint(images, tmp_path, capsys):
    output = tmp_path / "run"
    train.main(command(images, output, "--save_strategy", "steps", "--save_steps", "2"))
    whole = (output / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(output / "checkpoint-4")
    train.main(command(images, output, "--resume_from_checkpoint", "last"))
    assert (output / "adapter_model.safetensors").read_bytes() == whole
    assert [row["step"] for row in read_history(output / "scheduler_history.jsonl")] == [1, 2, 3, 4]
    other = command(images, tmp_path / "other", "--resume_from_checkpoint", "last")
    assert "is 'last', but" in fails(capsys, train.main, *other)


def test_wrong_arguments_give_one_clear_line(images, finished_run, tmp_path, capsys, monkeypatch):
    new = ["--output_dir", tmp_path / "x"]
    folder = ["--task_set", "folder", "--data_root", images, *QUICK]
    for arguments, message in (
        (["--task_set", "shape", *new], "Did you mean 'shapes'?"),
        (["--task_set", "folder", *new], "needs the folder with your images (ROOT/<task>/<class>/)"),
        (["--task_set", "folder", "--data_root", tmp_path / "none", *new], str(tmp_path / "none")),
        (["--output_dir", finished_run], "is not empty: choose another, pass --overwrite_output_dir"),
        ([*folder, *new, "--model_name_or_path", tmp_path / "no-clip"], "no-clip"),
        ([*folder, *new, "--hub_model_id", "me/mine"], "`hub_model_id` is 'me/mine', which needs `push_to_hub`"),
        ([*folder, *new, "--method", "zero_shot"], "`method` 'zero_shot' has nothing to train"),
    ):
        assert message in fails(capsys, train.main, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(task_data, "gather_objects", lambda digest: [digest, "another"])
        message = fails(capsys, train.main, *folder, *new)
        assert "`task_set` 'folder' has other images in some processes than in others" in message
    monkeypatch.setitem(sys.modules, "torchjd", None)
    message = fails(capsys, train.main, *folder, *new, "--gradient_aggregator", "cagrad")
    assert "`gradient_aggregator='cagrad'` needs" in message and "`pip install 'jscpt-peft[aggregators]'`" in message


def test_unreadable_images_are_named_or_skipped(tmp_path, capsys, caplog):
    images = draw_images(tmp_path / "images")
    broken = [images / "scans" / "sky" / name for name in ("2.png", "7.png")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    train.main([*command(images, tmp_path / "skipped"), "--skip_bad_images"])
    assert "Skipped 2 unreadable images" in caplog.text and "scans/sky/7.png" in caplog.text
    manifest = (tmp_path / "skipped" / "manifest.json").read_text()
    assert "scans/sky/2.png" not in manifest and "scans/sky/0.jpg" in manifest
    for path in (images / "scans" / "sky").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    message = fails(capsys, train.main, *command(images, tmp_path / "x"))
    assert "sky" in message and "cannot be read" in message


@pytest.mark.parametrize(
    ("output", "root", "message"),
    [
        ("images/out", "images", "lies in `data_root`"),
        ("images", "images", "lies in `data_root`"),
        ("out", "out/images", "lies in `output_dir`"),
        ("file", "images", "`output_dir` .* is no folder"),
        ("file/out", "images", "`output_dir` .* cannot be made"),
        ("base", "images", "holds a model"),
        ("new/out", "nowhere", "`data_root` .* does not exist"),
    ],
)
def test_an_output_that_would_harm_or_cannot_be_is_refused(tmp_path, capsys, output, root, message):
    """And no folder is left behind."""
    (tmp_path / "file").touch()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    if root != "nowhere":
        (tmp_path / root / "task" / "class").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    command = ["--task_set", "folder", "--data_root", tmp_path / root, "--output_dir", tmp_path / output]
    said = fails(capsys, train.main, *command, "--overwrite_output_dir", "--use_cpu")
    assert re.search(message, said) and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("method", "what"), [("jscpt", "adapter is"), ("linear_probe", "weights are")])
def test_ctrl_c_after_training_says_what_is_saved(images, tmp_path, capsys, monkeypatch, method, what):
    evaluate, calls = EvaluatingTrainer.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:  # the first is of zero-shot CLIP
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(EvaluatingTrainer, "evaluate", interrupted)
    words = ["--eval_strategy", "no", "--max_steps", "1", "--method", method]
    with pytest.raises(SystemExit) as stop:
        train.main(on_folder(images, tmp_path, *words))
    assert stop.value.code == 130
    assert f"Interrupted; the {what} saved in {tmp_path}" in " ".join(capsys.readouterr().out.split())
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
