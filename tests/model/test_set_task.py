"""Under `set_task` or `task_ids=` the model is a plain `CLIPModel` with another task's prompts."""

from __future__ import annotations

import oracles
import prompted
import pytest
import torch


def padded_ids(task, length):
    ids = prompted.class_token_ids()[task]
    return torch.tensor([row + [oracles.TINY_EOS] * (length - len(row)) for row in ids])


@pytest.mark.parametrize("depth", [1, None])
@pytest.mark.parametrize("eos_token_id", [2, oracles.TINY_EOS])
def testPlainClip_calls_give_the_tasks_features(depth, eos_token_id):
    model = prompted.prompted_clip(prompt_depth=depth, eos_token_id=eos_token_id)
    pixels, _, _ = prompted.batch(model)
    output = model.classify(pixels, 1)
    model.set_task("clipart")
    image = model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(image, output.selected_embeds, atol=1e-12, rtol=1e-12)
    for length in (5, 77):  # ids padded to the whole table must not overflow it
        ids = padded_ids("clipart", length)
        text = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
        torch.testing.assert_close(text, output.class_embeds[1, :2], atol=1e-12, rtol=1e-12)
        both = model(input_ids=ids, pixel_values=pixels)
        torch.testing.assert_close(both.logits_per_image, output.logits[:, :2], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("depth", [1, None])
def test_last_hidden_state_has_the_shape_of_the_base_models(depth):
    model = prompted.prompted_clip(prompt_depth=depth)
    pixels, _, _ = prompted.batch(model)
    model.set_task("photo")
    base = model.backbone.vision.base_layer(pixels)
    assert model.backbone.vision(pixels).last_hidden_state.shape == base.last_hidden_state.shape
    ids = padded_ids("sketch", 6)
    longest = 1 + max(len(row) - 1 for row in prompted.class_token_ids()["sketch"])
    assert model.backbone.text(ids).last_hidden_state.shape == (len(ids), longest, 24)


def test_task_ids_per_sample():
    model = prompted.prompted_clip()
    pixels, task_ids, _ = prompted.batch(model)
    mixed = model.get_image_features(pixel_values=pixels, task_ids=task_ids).pooler_output
    for row, task in enumerate(task_ids):
        alone = model.get_image_features(pixel_values=pixels[row : row + 1], task_ids=[int(task)]).pooler_output
        torch.testing.assert_close(mixed[row], alone[0], atol=1e-12, rtol=1e-12)


def test_predict_sorts_the_classes_of_the_task():
    from PIL import Image

    model = prompted.prompted_clip(torch.float32)
    images = [Image.new("RGB", (40, 32), colour) for colour in ("red", "blue", "green")]
    predictions = model.predict(images, task="sketch", batch_size=2)
    assert len(predictions) == 3
    for prediction in predictions:
        assert set(prediction) == set(prompted.TASKS["sketch"])
        assert list(prediction.values()) == sorted(prediction.values(), reverse=True)
        assert abs(sum(prediction.values()) - 1) < 1e-5
    assert model.predict(images[0], task="sketch")[0] == pytest.approx(predictions[0], rel=1e-5)  # float32


def test_class_features_are_kept_while_nothing_changes():
    model = prompted.prompted_clip()
    with torch.no_grad():
        kept = model.class_embeds()
        assert model.class_embeds() is kept
        model.backbone.text.jscpt_prompts["default"].task.add_(0.1)
        assert model.class_embeds() is not kept
    assert model.class_embeds().requires_grad


def test_class_features_are_kept_in_training_where_the_text_is_not_prompted():
    model = prompted.prompted_clip(towers="vision")
    kept = model.class_embeds()
    assert model.class_embeds(model.task_parameters()) is kept
    assert not kept.requires_grad


def test_views_other_than_the_parameters_are_used():
    model = prompted.prompted_clip()
    with torch.no_grad():
        kept, views = model.class_embeds(), model.task_parameters()
        views["text"] = views["text"] + torch.randn_like(views["text"])
        assert not torch.allclose(model.class_embeds(views), kept)


def test_features_kept_in_inference_mode_do_not_reach_training():
    model = prompted.prompted_clip()
    pixels, task_ids, labels = prompted.batch(model)
    with torch.inference_mode():
        model.classify(pixels, task_ids)
    model.classify(pixels, task_ids, labels).loss.backward()


class TestBadInput:
    def test_no_task(self):
        model = prompted.prompted_clip()
        pixels, _, _ = prompted.batch(model)
        with pytest.raises(ValueError, match=r"`task_ids` is missing and no task is set"):
            model.get_image_features(pixel_values=pixels)

    def test_unknown_task_suggests_the_nearest(self):
        with pytest.raises(ValueError, match=r"`task` 'clipar'.*Did you mean 'clipart'\?"):
            prompted.prompted_clip().set_task("clipar")

    @pytest.mark.parametrize("bad", [3, -1])
    def test_task_id_out_of_range(self, bad):
        model = prompted.prompted_clip()
        pixels, task_ids, _ = prompted.batch(model)
        task_ids[0] = bad
        with pytest.raises(ValueError, match=r"`task_ids` must lie in 0\.\.2"):
            model.classify(pixels, task_ids)

    def test_wrong_number_of_task_ids(self):
        model = prompted.prompted_clip()
        pixels, task_ids, _ = prompted.batch(model)
        with pytest.raises(ValueError, match=r"`task_ids` has 5 entries for 6 rows"):
            model.classify(pixels, task_ids[:5])

    def test_label_out_of_range(self):
        model = prompted.prompted_clip()
        pixels, task_ids, labels = prompted.batch(model)
        labels[1] = 2  # task "clipart" has two classes
        with pytest.raises(ValueError, match=r"`labels\[1\]` is 2, but task 'clipart' has 2 classes"):
            model.classify(pixels, task_ids, labels)

    def test_text_that_does_not_fit(self):
        model = prompted.prompted_clip()
        model.set_task("photo")
        ids = torch.full((1, 77), 5)
        ids[0, 0], ids[0, -1] = oracles.TINY_SOS, oracles.TINY_EOS
        with pytest.raises(ValueError, match="needs 82 positions, but the base model has 77"):
            model.get_text_features(input_ids=ids)

    def test_recording_hidden_states(self):
        model = prompted.prompted_clip()
        pixels, _, _ = prompted.batch(model)
        with pytest.raises(ValueError, match="`output_hidden_states=True` is not available"):
            model.get_image_features(pixel_values=pixels, task_ids=0, output_hidden_states=True)
