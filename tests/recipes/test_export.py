"""`recipes/export.py` on an adapter of the small CLIP, as a user has it."""

from __future__ import annotations

import json

import export
import pytest
import torch
from paths import TINY_CLIP
from peft import PeftModel
from recipe_runs import fails, save_adapter
from transformers import CLIPImageProcessorPil, CLIPModel

import jscpt_peft.serving.export

TASKS = {"flat": ["circle", "heart", "star"], "chalk": ["circle", "ring"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("adapter"), TASKS)


def test_the_command_writes_what_the_adapter_computes(trained, tmp_path, capsys):
    output = tmp_path / "served"
    export.main(["--adapter", str(trained), "--task", "chalk", "--output", str(output), "--measure"])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("The classifier of chalk (")
    assert "One image, medians of 20: adapter " in printed
    about = json.loads((output / "classifier.json").read_text())
    assert (about["class_names"], about["dtype"]) == (TASKS["chalk"], "float32")
    assert about["image_mean"] == list(CLIPImageProcessorPil.from_pretrained(TINY_CLIP).image_mean)
    assert about["base_model"] == "tiny-clip"  # not its path on this machine
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), trained)
    pixels = torch.randn(3, 3, about["image_size"], about["image_size"])
    with torch.no_grad():
        expected = model.classify(pixels, 1).logits[:, :2]
        logits = torch.export.load(output / "classifier.pt2").module()(pixels)
    scale = model.get_base_model().logit_scale.exp().item()
    assert ((logits - expected) / scale).abs().max() <= 1e-6  # of the cosines


def test_the_only_task_needs_no_name_and_its_weights_are_of_the_type_asked_for(tmp_path, monkeypatch):
    def exported(_, task, directory, dtype, *__):
        directory.mkdir()
        (directory / "classifier.pt2").touch()
        asked.append((task, dtype))
        return directory

    asked = []
    monkeypatch.setattr(jscpt_peft.serving.export, "export_task", exported)
    of_one = save_adapter(tmp_path / "trained", {"flat": TASKS["flat"]})
    export.main(["--adapter", str(of_one), "--output", str(tmp_path / "half"), "--dtype", "bfloat16"])
    assert asked == [("flat", torch.bfloat16)]


def test_errors_are_told_in_a_line(trained, tmp_path, capsys):
    output = tmp_path / "served"
    for arguments, message in (
        (["--output", output], "`--task` is missing: name one of flat, chalk."),
        (["--task", "flad", "--output", output], "`task` 'flad' is not one of"),
        (["--task", "flat", "--output", trained], "holds something else than an earlier export"),
    ):
        assert message in fails(capsys, export.main, "--adapter", trained, *arguments)
    assert not output.exists()
