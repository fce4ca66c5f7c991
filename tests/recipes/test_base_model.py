"""A base model that is not whole, or none, is refused in one sentence that names the option."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from base_model import load_clip, load_processor
from paths import TINY_CLIP
from safetensors.torch import load_file, save_file

FIRST = "text_model.encoder.layers.0.mlp.fc1.weight"


def of_config(**changed):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def of_tensors(how):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        how(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def of_processor(**changed):
    return written("processor_config.json", json.dumps({"image_processor": changed}).encode())


def rename(tensors):
    tensors["stranger.weight"] = torch.zeros(3)


FAULTS = {
    "lacks 'text_model.encoder.layers.0.mlp.fc1.weight'": of_tensors(lambda tensors: tensors.pop(FIRST)),
    "mismatch|another shape": of_tensors(lambda tensors: tensors.update({FIRST: torch.zeros(2, 2)})),
    "no place for 'stranger.weight'": of_tensors(rename),
    "'.*layers.0.mlp.fc1.weight' is not finite": of_tensors(lambda tensors: tensors[FIRST].fill_(torch.nan)),
    r"'.*layers.0.mlp.fc1.weight' holds 1e\+30": of_tensors(lambda tensors: tensors[FIRST].fill_(1e30)),
    "`model_type` is 'siglip', not 'clip'": of_config(model_type="siglip"),
    r"`text_config\['num_hidden_layers'\]` must be at most": of_config(text_config={"num_hidden_layers": 10**9}),
    "`vision_config` must be a mapping": of_config(vision_config=[1]),
    "nested too deeply": written("config.json", b"[" * 100_000),
    "no UTF-8": written("config.json", b"\xff\xfe{}"),
    "holds a list": written("config.json", b"[]"),
    "'a' twice": written("config.json", b'{"a": 1, "a": 2}'),
    r"cannot be loaded \(.*safetensors": lambda folder: (folder / "model.safetensors").unlink(),
    r"cannot be loaded \(.*header": written("model.safetensors", b"no tensors"),
    "`mean` is 'x'": of_processor(image_mean="x", crop_size=64),
    "three finite numbers": of_processor(image_mean=[0, 0, 0], image_std=[0, 1, 1], crop_size=64),
    "makes images of 32 pixels, the model takes 64": of_processor(crop_size=32),
    r"cannot be loaded \(it is nested too deeply": written("processor_config.json", b"[" * 100_000),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_base_that_is_not_whole_is_refused(tmp_path, message):
    folder = tmp_path / "clip"
    shutil.copytree(TINY_CLIP, folder)
    FAULTS[message](folder)
    with pytest.raises(ValueError, match=rf"`model_name_or_path` '{folder}'.*({message})") as caught:
        load_processor(str(folder), load_clip(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_base_that_is_whole_or_not_there():
    clip = load_clip(str(TINY_CLIP))
    assert load_processor(str(TINY_CLIP), clip).crop_size["height"] == 64
    with pytest.raises(ValueError, match="`adapter` mine: its base model '/no/clip' is neither a folder nor a name"):
        load_clip("/no/clip", "`adapter` mine: its base model")
