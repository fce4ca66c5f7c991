"""Under `set_task` or `task_ids=` the model is a plain `CLIPModel` with another task's prompts."""

from __future__ import annotations

import oracles
import prompted
import pytest
import torch
from torch.testing import assert_close

EXACT = {"atol": 1e-10, "rtol": 1e-10}
LONG = torch.tensor([[oracles.TINY_SOS, *[5] * 75, oracles.TINY_EOS]])


def padded_ids(task, length):
    ids = prompted.class_token_ids()[task]
    return torch.tensor([row + [oracles.TINY_EOS] * (length - len(row)) for row in ids])


@pytest.mark.parametrize("depth", [1, None])
@pytest.mark.parametrize("eos_token_id", [2, oracles.TINY_EOS])
def test_plain_calls_give_the_tasks_features(depth, eos_token_id):
    model = prompted.prompted_clip(prompt_depth=depth, eos_token_id=eos_token_id)
    pixels, _, _ = prompted.batch(model)
    output = model.classify(pixels, 1)
    model.set_task("clipart")
    assert_close(model.get_image_features(pixel_values=pixels).pooler_output, output.selected_embeds, **EXACT)
    for length in (5, 77):  # ids padded to the whole table must not overflow it
        ids = padded_ids("clipart", length)
        text = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
        assert_close(text, output.class_embeds[1, :2], **EXACT)
        both = model(input_ids=ids, pixel_values=pixels)
        assert_close(both.logits_per_image, output.logits[:, :2], **EXACT)


@pytest.mark.parametrize("depth", [1, None])
def test_last_hidden_state_has_the_shape_of_the_base_models(depth):
    model = prompted.prompted_clip(prompt_depth=depth)
    pixels, _, _ = prompted.batch(model)
    model.set_task("photo")
    base = model.backbone.vision.base_layer(pixels)
    assert model.backbone.vision(pixels).last_hidden_state.shape == base.last_hidden_state.shape
    ids = padded_ids("sketch", 6)
    longest = max(map(len, prompted.class_token_ids()["sketch"]))
    assert model.backbone.text(ids).last_hidden_state.shape == (len(ids), longest, 24)


def test_task_ids_per_sample(model, batch):
    pixels, task_ids, _ = batch
    mixed = model.get_image_features(pixel_values=pixels, task_ids=task_ids).pooler_output
    for row, task in enumerate(task_ids):
        alone = model.get_image_features(pixel_values=pixels[row : row + 1], task_ids=[int(task)]).pooler_output
        assert_close(mixed[row], alone[0], **EXACT)


@pytest.mark.parametrize("present_tasks_only", [False, True])
def test_an_empty_batch(model, present_tasks_only):
    nothing, none = torch.zeros(0, 3, 32, 32, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    assert model.classify(nothing, none, present_tasks_only=present_tasks_only).logits.shape == (0, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: model.get_image_features(pixel_values=x), "`task_ids` is missing and no task is set"),
        (lambda model, _: model.set_task("clipar"), r"`task` 'clipar'.*Did you mean 'clipart'\?"),
        (lambda model, x: model.classify(x, [0, 3, 1, 0, 1, 2]), r"`task_ids` must lie in 0\.\.2"),
        (lambda model, x: model.classify(x, -1), r"`task_ids` must lie in 0\.\.2"),
        (lambda model, x: model.classify(x, [0, 1, 2]), r"`task_ids` has 3 entries for 6 rows"),
        (
            lambda model, x: model.classify(x, 1, torch.tensor([0, 2, 0, 0, 0, 0])),
            r"`labels\[1\]` is 2, but task 'clipart' has 2 classes",
        ),
        (lambda model, x: model.classify(x, 1, torch.tensor([0, 0, -1, 0, 0, 0])), r"`labels\[2\]` is -1"),
        (
            lambda model, _: model.get_text_features(input_ids=LONG, task_ids=0),
            "needs 82 positions, but the base model has 77",
        ),
        (
            lambda model, x: model.get_image_features(pixel_values=x, task_ids=0, output_hidden_states=True),
            "`output_hidden_states=True` is not available",
        ),
        (lambda model, _: model.prompt_tokens("txt"), r"`tower` must be one of \['vision', 'text'\], got 'txt'"),
    ],
)
def test_bad_input(model, pixels, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, pixels)


@pytest.mark.parametrize("pixels", [[[1]], torch.zeros(3, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)])
def test_pixels_that_are_no_batch_of_normalised_images_are_refused(pixels):
    with pytest.raises(ValueError, match=r"`pixel_values` is .*: give normalised floating-point \[B, 3, H, W\]"):
        prompted.prompted_clip(torch.float32).classify(pixels, 0)
    with pytest.raises(ValueError, match="`task_ids` is 'photo': give whole numbers"):
        prompted.prompted_clip(torch.float32).classify(torch.zeros(2, 3, 32, 32), "photo")
