"""State where it belongs: tasks travel with the tensors, and threads do not meet."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import adapted
import oracles
import prompted
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import CLIPModel

from jscpt_peft import JSCPTPeftModel
from jscpt_peft.model.task_features import TaskFeatures

TEXT = torch.tensor([[oracles.TINY_SOS, 3, oracles.TINY_EOS]])


class TestTasksTravelWithTheTensors:
    IDS = torch.tensor([0, 1, 2, 1])

    @pytest.fixture
    def clip(self, model):
        return model.get_base_model()

    @pytest.fixture
    def pixels(self):
        return torch.randn(4, 3, 32, 32, dtype=torch.float64)

    def pooled(self, clip, pixels, task):
        return clip.vision_model(pixels, task_ids=task).pooler_output

    def test_not_with_the_last_call(self, clip, pixels):
        a, b = self.pooled(clip, pixels, 0), self.pooled(clip, pixels, 1)
        for features, task in ((a, 0), (b, 1), (a, 0)):
            expected = clip.get_image_features(pixels, task_ids=task).pooler_output
            assert torch.equal(clip.visual_projection(features), expected)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x.clone(),
            lambda x: x.detach(),
            lambda x: x.float().double(),
            lambda x: x.to(torch.float32).to(torch.float64),
            lambda x: 1.0 * x / 1.0,
            lambda x: x[:],
            lambda x: x[torch.arange(4)],
            lambda x: torch.mul(x, 1.0),
            lambda x: 1.0 - (1.0 - x),
            lambda x: torch.cat(x.chunk(2)),
            lambda x: torch.cat(x.split([1, 3])),
            lambda x: x.flip(0).flip(0),
            copy.deepcopy,
        ],
    )
    def test_through_conversions_arithmetic_and_indexing(self, clip, pixels, change):
        with torch.no_grad():
            features = change(self.pooled(clip, pixels, self.IDS))
            clip.vision_model(pixels, task_ids=2)
            expected = clip.get_image_features(pixels, task_ids=self.IDS).pooler_output
            assert_close(clip.visual_projection(features), expected, atol=1e-4, rtol=1e-4)

    def test_rows_keep_their_own(self, clip, pixels):
        features = self.pooled(clip, pixels, self.IDS)
        for rows in (slice(1, 3), [3, 0], torch.tensor([False, True, True, False])):
            assert_close(clip.visual_projection(features[rows]), clip.visual_projection(features)[rows])

    @pytest.mark.parametrize("change", [lambda x: x.repeat(2, 1), lambda x: x.sort(0)[0], lambda x: x.unsqueeze(0)[0]])
    def test_where_they_are_lost_it_is_said(self, clip, pixels, change):
        features = change(self.pooled(clip, pixels, 0))
        with pytest.raises(ValueError, match="the tasks of these image features got lost"):
            clip.visual_projection(features)

    def test_what_leaves_the_model_is_plain(self, clip, pixels):
        assert not isinstance(clip(TEXT, pixels, task_ids=0).image_embeds, TaskFeatures)
        assert type(pickle.loads(pickle.dumps(self.pooled(clip, pixels, 0)))) is torch.Tensor


# ---- threads --------------------------------------------------------------------------------------------------------


def calls(model):
    """Ways to use a model from one thread, each with its own result; the first ones also under dropout."""
    pixels, task_ids, _ = prompted.batch(model, per_task=1)
    images = adapted.pictures(2)

    def disabled():
        with model.disable_adapter():
            return model.get_image_features(pixel_values=pixels).pooler_output

    def mixed_precision():
        with torch.autocast("cpu", torch.bfloat16):
            return model.classify(pixels, task_ids).logits

    def features(task):
        return lambda: model.get_image_features(pixel_values=pixels, task_ids=task).pooler_output

    def predicted(task):
        return lambda: torch.tensor([sorted(each.values()) for each in model.predict(images, task=task)])

    return [
        *(predicted(task) for task in model.task_names),
        *(features(task) for task in (0, 1, 2)),
        lambda: model.classify(pixels, task_ids).logits,
        disabled,
        mixed_precision,
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_eight_threads_compute_what_one_does(dropout):
    """The base in training mode drops attention weights, but not where `predict` asks for an answer."""
    model = prompted.prompted_clip(torch.float32).train(bool(dropout))
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = dropout
    chosen = calls(model)[: 3 if dropout else None]
    with torch.no_grad():
        serial = [call() for call in chosen]

    def threaded(number):
        with torch.no_grad():
            return chosen[number % len(chosen)]()

    with ThreadPoolExecutor(8) as pool:
        for number, result in enumerate(pool.map(threaded, range(8 * len(chosen)))):
            assert torch.equal(result, serial[number % len(chosen)]), f"call {number % len(chosen)}"


def test_disabling_in_one_thread_leaves_the_others_alone(model, batch):
    expected = model.classify(*batch).logits
    with ThreadPoolExecutor(1) as pool, model.disable_adapter():
        assert not model.get_model_status().enabled
        assert torch.equal(pool.submit(lambda: model.classify(*batch).logits).result(), expected)
        assert not torch.equal(model.classify(*batch).logits, expected)
    assert model.get_model_status().enabled


# ---- attributes, devices --------------------------------------------------------------------------------------------


def test_attributes_of_wrapped_layers_remain_reachable(model):
    clip = model.get_base_model()
    assert clip.vision_model.encoder.layers[0].self_attn.k_proj.in_features == 32
    assert clip.vision_model.config.hidden_size == 32 and clip.text_model.config.hidden_size == 24
    assert (clip.visual_projection.in_features, clip.visual_projection.out_features) == (32, 20)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clip.vision_model.nothing


def test_methods_are_seen(model):
    assert type(model) is JSCPTPeftModel
    methods = {"classify", "predict", "prompt_tokens", "set_task", "add_task", "train_only", "export_task"}
    assert methods | {"task_names", "trained_task"} <= set(dir(model))
    assert "present_tasks_only" in JSCPTPeftModel.classify.__doc__


def test_meta_and_back(model, batch):
    expected, state = model.classify(*batch).logits, copy.deepcopy(model.state_dict())
    model.to("meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.prompt_tokens("vision").shape == (3, 3, 5, 32)
    model.to_empty(device="cpu").load_state_dict(state)
    for name, buffer in oracles.tiny_clip().named_buffers():  # position ids are in no state dict
        model.get_base_model().get_buffer(name.replace("model.", "model.base_layer.", 1)).copy_(buffer)
    assert torch.equal(model.classify(*batch).logits, expected)


# ---- torch.compile --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_after_the_adapter():
    model = prompted.prompted_clip(torch.float32, clip=oracles.tiny_clip(layers=1, dtype=torch.float32))
    pixels, *_ = prompted.batch(model)
    with torch.no_grad():
        given = {"input_ids": TEXT, "pixel_values": pixels, "task_ids": 0}
        compiled = torch.compile(model, backend="eager")(**given)
        assert_close(compiled.logits_per_image, model(**given).logits_per_image)


@pytest.mark.slow
def test_compiled_in_place_before_the_adapter():
    plain, clip = prompted.prompted_clip(torch.float32), oracles.tiny_clip(dtype=torch.float32)
    clip.compile(backend="eager")
    clip.vision_model.compile(backend="eager")
    model = prompted.prompted_clip(torch.float32, clip=clip)
    model.load_state_dict(plain.state_dict())
    pixels, task_ids, _ = prompted.batch(plain)
    with torch.no_grad():
        assert torch.equal(model.classify(pixels, task_ids).logits, plain.classify(pixels, task_ids).logits)
        expected = plain.get_image_features(pixel_values=pixels, task_ids=task_ids).pooler_output
        assert_close(model.get_image_features(pixel_values=pixels, task_ids=task_ids).pooler_output, expected)


@pytest.mark.parametrize("compiled", ["whole", "tower"])
def test_a_compiled_base_is_refused_before_anything_changes(tmp_path, model, compiled):
    model.save_pretrained(tmp_path)
    clip = oracles.tiny_clip()
    base = torch.compile(clip) if compiled == "whole" else clip
    if compiled == "tower":
        clip.vision_model = torch.compile(clip.vision_model)
    for put in (lambda: get_peft_model(base, prompted.config()), lambda: PeftModel.from_pretrained(base, tmp_path)):
        with pytest.raises((TypeError, ValueError), match="OptimizedModule"):
            put()
    assert isinstance(clip, CLIPModel) and not any("jscpt" in name for name, _ in clip.named_parameters())
