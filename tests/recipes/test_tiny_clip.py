"""The small CLIP of the recipes: a whole checkpoint, offline, that knows a little."""

from __future__ import annotations

import socket

import pytest
import torch
from paths import TINY_CLIP
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from jscpt_peft.data import shapes_task_set

NAMES = ["lightning bolt", "animal-bird", "light & video", "food-prepared", "face-neutral-skeptical", "漢字 🙂"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(TINY_CLIP).eval()


def test_it_is_whole_and_small(model):
    assert sum(file.stat().st_size for file in TINY_CLIP.iterdir()) <= 12e6
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32 and weight.isfinite().all(), name
    assert 14.3 < model.logit_scale.exp() <= 100  # it starts at 1 / 0.07 and is trained


def test_processors_fit_the_model(model):
    tokenizer, processor = AutoTokenizer.from_pretrained(TINY_CLIP), AutoImageProcessor.from_pretrained(TINY_CLIP)
    vision, text = model.config.vision_config, model.config.text_config
    assert processor.crop_size == {"height": vision.image_size, "width": vision.image_size}
    assert len(tokenizer) == text.vocab_size
    assert tokenizer.model_max_length == text.max_position_embeddings == 77
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (text.bos_token_id, text.eos_token_id)
    assert text.eos_token_id > 2
    for name in NAMES:
        ids = tokenizer(name)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1 <= 13  # no unknown token: that would be [EOS] too
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == name.replace(" ", "")


def test_zero_shot_is_above_chance_and_below_the_ceiling(model):
    processor = CLIPProcessor.from_pretrained(TINY_CLIP)
    task_set = shapes_task_set(seed=7, shots=1, test_per_class=6)  # 384 images: two standard deviations are 0.05
    texts = [task_set.tasks[0].template.format(name) for name in task_set.tasks[0].class_names]
    correct = []
    for task in task_set:
        rows = task.test[:]
        inputs = processor(text=texts, images=rows["image"], padding=True, return_tensors="pt")
        with torch.no_grad():
            predictions = model(**inputs).logits_per_image.argmax(dim=-1)
        correct += (predictions == torch.tensor(rows["label"])).tolist()
    assert 0.3 < sum(correct) / len(correct) < 0.7
