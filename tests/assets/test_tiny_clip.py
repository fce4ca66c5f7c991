from __future__ import annotations

import socket

import pytest
import torch
from paths import TINY_CLIP
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from jscpt_peft.data import shapes_task_set


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(TINY_CLIP).eval()


def test_it_fits_into_twelve_megabytes():
    assert sum(file.stat().st_size for file in TINY_CLIP.iterdir()) <= 12e6


def test_weights_are_finite_float32_with_a_sane_scale(model):
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32, name
        assert weight.isfinite().all(), name
    assert 14.3 < model.logit_scale.exp() <= 100  # it starts at 1 / 0.07 and is trained


def test_processors_fit_the_model(model):
    tokenizer, processor = AutoTokenizer.from_pretrained(TINY_CLIP), AutoImageProcessor.from_pretrained(TINY_CLIP)
    config = model.config
    assert processor.crop_size == {"height": 64, "width": 64}
    assert config.vision_config.image_size == 64
    assert len(tokenizer) == config.text_config.vocab_size
    assert tokenizer.model_max_length == config.text_config.max_position_embeddings == 77
    assert tokenizer.eos_token_id == config.text_config.eos_token_id > 2
    assert tokenizer.bos_token_id == config.text_config.bos_token_id


@pytest.mark.parametrize(
    "name", ["lightning bolt", "animal-bird", "light & video", "food-prepared", "face-neutral-skeptical", "漢字 🙂"]
)
def test_class_names_have_a_handful_of_tokens(name):
    tokenizer = AutoTokenizer.from_pretrained(TINY_CLIP)
    ids = tokenizer(name)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1  # no unknown token: that would be [EOS] too
    assert len(ids) <= 14
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == name.replace(" ", "")


def test_zero_shot_is_above_chance_and_below_the_ceiling(model):
    processor = CLIPProcessor.from_pretrained(TINY_CLIP)
    task_set = shapes_task_set(seed=7, shots=1, test_per_class=6)  # 384 pictures: two standard deviations are 0.05
    texts = [task_set.tasks[0].template.format(name) for name in task_set.tasks[0].class_names]
    correct = []
    for task in task_set:
        rows = task.test[:]
        inputs = processor(text=texts, images=rows["image"], padding=True, return_tensors="pt")
        with torch.no_grad():
            predictions = model(**inputs).logits_per_image.argmax(dim=-1)
        correct += (predictions == torch.tensor(rows["label"])).tolist()
    assert 0.3 < sum(correct) / len(correct) < 0.7
