from __future__ import annotations

import json

import pretrain_tiny_clip as tool
import pytest
import torch
from captioned_images import draw_scenes, read_emoji
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from jscpt_peft.data import shapes_task_set

TOY = {
    "steps": 3,
    "batch_size": 8,
    "scenes": 24,
    "vision_width": 32,
    "vision_layers": 1,
    "text_width": 32,
    "text_layers": 1,
    "vocabulary_size": 640,
    "threads": 1,
}


@pytest.fixture(scope="module")
def toy_clip(tmp_path_factory):
    """A folder with a toy CLIP."""
    folder = tmp_path_factory.mktemp("toy") / "clip"
    tool.main(tool.PretrainingArguments(output_dir=str(folder), **TOY))
    return folder


@pytest.fixture
def emoji_root(tmp_path):
    """Two pretraining emoji and one of a task; an image is plain in a grey level of its own."""
    entries = []
    for number, split in enumerate(["pretrain", "pretrain", "test"]):
        entry = {"emoji": f"e{number}", "class": "animal-bird", "split": split, "name": f"bird {number}"}
        entries.append(entry | {"keywords": [f"word{number}", "wing"]})
        # Even a task emoji that lies in the wrong folder must not be read.
        for style in ("google", "twitter"):
            folder = tmp_path / "emoji" / "pretrain" / style
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (50 * number,) * 3).save(folder / f"e{number}.png")
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "emoji" / "captions.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path / "emoji"


def test_task_emoji_are_never_used(emoji_root):
    emoji = read_emoji(emoji_root)
    assert emoji.pixels.shape == (4, 3, 64, 64)
    assert set(emoji.pixels.flatten().tolist()) == {0, 50}
    words = " ".join(caption for captions in emoji.captions for caption in captions)
    assert "bird 0" in words
    assert "bird 2" not in words
    assert "word2" not in words
    assert "a photo of a animal-bird." in emoji.captions[0]  # the template of the tasks, to the letter
    assert any("word0" in caption for caption in emoji.captions[0])


def test_scenes_are_captioned_by_what_is_drawn_and_never_those_of_the_tasks():
    scenes = draw_scenes(60, seed=1)
    assert scenes.pixels.shape == (60, 3, 64, 64)
    assert scenes.pixels.dtype == torch.uint8
    drawn = {pixels.permute(1, 2, 0).numpy().tobytes() for pixels in scenes.pixels}
    task_set = shapes_task_set(seed=1)
    assert not drawn & {image.tobytes() for task in task_set for image in task.dev[:]["image"]}
    assert {len(set(captions)) for captions in scenes.captions} == {6}


def test_a_short_run_saves_a_clip_that_loads_and_is_repeatable(toy_clip, tmp_path):
    folder = toy_clip
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert AutoImageProcessor.from_pretrained(folder).crop_size == {"height": 64, "width": 64}
    batch = processor(text=["a star."], images=[Image.new("RGB", (100, 80))], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert model(**batch).logits_per_image.shape == (1, 1)
    # [EOS] is read by its id and is the highest id too: both conventions find it.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id == len(tokenizer) - 1 > 2
    tool.main(tool.PretrainingArguments(output_dir=str(tmp_path), **TOY))
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_any_string_has_tokens():
    tokenizer = tool.train_tokenizer(["a photo of a star.", "a photo of a star."], size=530)
    assert tokenizer("a photo of a star.")["input_ids"][0] == tokenizer.bos_token_id
    for text in ("light & video", "naïve 🙂 漢字", "x", "Q7%"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        # [EOS] is also the token for the unknown: it must not stand anywhere else
        assert tokenizer.eos_token_id not in ids[:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_same_captions_are_no_negatives():
    embeds = torch.eye(4)[[0, 0, 1, 2]]
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    scale = torch.tensor(3.0)
    told = tool.contrastive_loss(embeds, embeds, scale, same)
    assert told == pytest.approx(0.5 * torch.tensor(2.0).log().item(), abs=1e-5)
    shuffled = embeds[[2, 0, 1, 3]]
    assert tool.contrastive_loss(embeds, shuffled, scale, same) > told + 1
