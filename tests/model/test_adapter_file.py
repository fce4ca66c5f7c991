"""An adapter's file holds the adapter's tensors and nothing else, and a refused one leaves everything as it was."""

from __future__ import annotations

import json
import subprocess

import oracles
import prompted
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from jscpt_peft.model.adapter_file import DIGEST_FILE

WEIGHTS = "adapter_model.safetensors"
BASE = "base_model.model.text_projection.weight"


@pytest.fixture
def folder(tmp_path):
    """A saved adapter; its digest is left out, so that tensors can be changed."""
    prompted.prompted_clip(torch.float32).save_pretrained(tmp_path)
    (tmp_path / DIGEST_FILE).unlink()
    return tmp_path


def change(folder, **changed):
    """Changes tensors by the names that they end in; those that become `None` go."""
    tensors = load_file(folder / WEIGHTS)
    for end, how in changed.items():
        name = next((name for name in tensors if name.endswith(end)), end)
        tensors[name] = how(tensors.get(name))
    save_file({name: each for name, each in tensors.items() if each is not None}, folder / WEIGHTS)


def spoiled(tensor):
    return tensor.index_fill(0, torch.tensor([0]), torch.nan)


CHANGES = {
    "is missing": {"vision_shared": lambda _: None},
    "'stranger' is no tensor of the adapter": {"stranger": lambda _: torch.zeros(2)},
    f"'{BASE}' is no tensor of the adapter": {BASE: lambda _: torch.zeros(24, 24)},
    "has the shape": {"mask": lambda each: each[:, 1:].contiguous()},
    "holds torch.int64": {"text_task": lambda each: each.long()},
    "holds torch.bool": {"mask": lambda each: each > 0},
    "is not finite": {"inner_up": spoiled},
    r"text_task' holds 1e\+30, where nothing beyond": {"text_task": lambda each: torch.full_like(each, 1e30)},
    "vision_task' is not finite": {"vision_task": lambda each: torch.full_like(each, 1e300, dtype=torch.float64)},
}


@pytest.mark.parametrize("problem", CHANGES)
def test_what_is_not_the_adapter_is_refused_by_name(folder, problem):
    change(folder, **CHANGES[problem])
    clip = oracles.tiny_clip(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    with pytest.raises(ValueError, match=rf"weights are not those that its configuration tells of: .*{problem}"):
        PeftModel.from_pretrained(clip, folder)
    after = clip.state_dict()  # no wrapped layer is left either
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["second", "default"])
def test_a_refused_adapter_leaves_the_model_as_it_was(folder, name):
    """A second one is not there, and one that exists keeps its weights."""
    model = prompted.prompted_clip(torch.float32, init_seed=5)
    before, trainable = model.state_dict(), [each.requires_grad for each in model.parameters()]
    before = {key: tensor.clone() for key, tensor in before.items()}
    change(folder, vision_shared=spoiled)
    with pytest.raises(ValueError, match="vision_shared' is not finite"):
        model.load_adapter(folder, name)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert list(model.peft_config) == ["default"] == model.active_adapters
    assert trainable == [each.requires_grad for each in model.parameters()]


def test_other_precisions_and_names_are_taken(folder):
    change(folder, vision_shared=torch.Tensor.half, mask=torch.Tensor.double)
    model = PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), folder, adapter_name="mine")
    model.load_adapter(folder, "second")
    assert set(model.peft_config) == {"mine", "second"}


def test_damage_is_found_by_the_digest(tmp_path):
    """As a bit that flips on a disk, with all values finite; of every adapter that is saved."""
    model = prompted.prompted_clip(torch.float32)
    model.add_adapter("second", model.peft_config["default"])
    model.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "second"):
        subprocess.run(["sha256sum", "--check", "--quiet", DIGEST_FILE], cwd=folder, check=True)
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match="is not what was saved: its digest is not that of"):
            model.load_adapter(folder, "third")
        assert "third" not in model.peft_config
        model.save_pretrained(tmp_path)  # over it
        model.load_adapter(folder, "third")
        model.delete_adapter("third")


def reorder_classes(folder):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for part in ("tasks", "class_token_ids"):
        config[part] = {task: each[::-1] for task, each in config[part].items()}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("changed", ["classes", "format", "digest"])
def test_the_digest_is_of_the_configuration_and_of_what_peft_loads(tmp_path, changed):
    """Classes in another order; digests of a file that PEFT passes over; digests that are none."""
    prompted.prompted_clip(torch.float32).save_pretrained(tmp_path)
    whole = (tmp_path / DIGEST_FILE).read_text()
    if changed == "classes":
        reorder_classes(tmp_path)
    else:
        text = whole.replace(WEIGHTS, "adapter_model.bin") if changed == "format" else "\x00"
        (tmp_path / DIGEST_FILE).write_text(text)
    name = "adapter_config.json" if changed == "classes" else WEIGHTS
    with pytest.raises(ValueError, match=f"{name} of the adapter .* is not what was saved"):
        PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), tmp_path)
    (tmp_path / DIGEST_FILE).write_text(whole.splitlines()[0])  # as 0.1 wrote it
    PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, DIGEST_FILE])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    prompted.prompted_clip(torch.float32).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} of the adapter .* is no file"):
        PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), tmp_path)


def test_what_was_saved_last_is_what_loads(tmp_path):
    model = prompted.prompted_clip(torch.float32)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.task_adapter.prompts.vision_shared.add_(1)
    for safe in (False, True):
        model.save_pretrained(tmp_path, safe_serialization=safe)
        loaded = PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), tmp_path)
        assert torch.equal(loaded.prompt_tokens("vision"), model.prompt_tokens("vision"))


@pytest.mark.parametrize("name", ["", "a.b", "a\x1b"])
def test_names_that_no_adapter_can_have_are_refused(name):
    model = prompted.prompted_clip(torch.float32)
    with pytest.raises(ValueError, match="`adapter_name`"):
        model.add_adapter(name, prompted.config())
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ValueError, match="`adapter_name`"):
        get_peft_model(oracles.tiny_clip(), prompted.config(), adapter_name=name)


@pytest.mark.parametrize("folder", ["", 5, None])
def test_an_adapter_is_saved_in_a_folder_that_is_named(folder):
    with pytest.raises(ValueError, match="`save_directory`"):
        prompted.prompted_clip(torch.float32).save_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_weights_that_are_no_pickle_are_named(folder, content):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model.bin of the adapter .* or not whole"):
        PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_what_could_not_be_loaded_again_is_not_written(tmp_path, value):
    """What was saved before stays; a further adapter counts, too."""
    model = prompted.prompted_clip(torch.float32)
    model.add_adapter("second", prompted.config())
    model.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model.set_adapter("second")
    model.task_adapter.prompts.vision_shared.detach()[0] = value
    for write in (model.save_pretrained, lambda folder: model.export_task("photo", folder / "exported")):
        with pytest.raises(ValueError, match=r"vision_shared' of the adapter .*nothing is written"):
            write(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model.save_pretrained(tmp_path, selected_adapters=["default"])


def test_an_export_of_a_base_that_is_not_finite_is_refused(tmp_path):
    model = prompted.prompted_clip(torch.float32)
    model.get_base_model().visual_projection.weight.detach()[0] = torch.nan
    with pytest.raises(ValueError, match=r"visual_projection.*' of the base model is not finite"):
        model.export_task("photo", tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []
