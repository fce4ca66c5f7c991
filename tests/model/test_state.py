"""State where it belongs: tasks travel with the tensors, threads do not meet, and importing changes nothing."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import adapted
import oracles
import prompted
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import CLIPModel

from jscpt_peft import JSCPTConfig, JSCPTPeftModel
from jscpt_peft.model.task_features import TaskFeatures


class TestTasksTravelWithTheTensors:
    @pytest.fixture
    def clip(self):
        return prompted.prompted_clip().eval().get_base_model()

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
            lambda x: x / 1.0,
            lambda x: 1.0 * x,
            lambda x: x[:],
            lambda x: x[torch.arange(4)],
            copy.deepcopy,
        ],
    )
    def test_through_conversions_arithmetic_and_indexing(self, clip, pixels, change):
        with torch.no_grad():
            features = change(self.pooled(clip, pixels, torch.tensor([0, 1, 2, 1])))
            clip.vision_model(pixels, task_ids=2)
            expected = clip.get_image_features(pixels, task_ids=torch.tensor([0, 1, 2, 1])).pooler_output
            torch.testing.assert_close(clip.visual_projection(features), expected, atol=1e-4, rtol=1e-4)

    def test_rows_keep_their_own(self, clip, pixels):
        features = self.pooled(clip, pixels, torch.tensor([0, 1, 2, 1]))
        for rows in (slice(1, 3), [3, 0], torch.tensor([False, True, True, False])):
            expected = clip.visual_projection(features)[rows]
            torch.testing.assert_close(clip.visual_projection(features[rows]), expected)

    def test_where_they_are_lost_it_is_said(self, clip, pixels):
        features = self.pooled(clip, pixels, 0).flip(0)
        with pytest.raises(ValueError, match="`task_ids` is missing and no task is set"):
            clip.visual_projection(features)

    def test_what_leaves_the_model_is_plain(self, clip, pixels):
        output = clip(
            input_ids=torch.tensor([[oracles.TINY_SOS, 3, oracles.TINY_EOS]]), pixel_values=pixels, task_ids=0
        )
        assert not isinstance(output.image_embeds, TaskFeatures)
        restored = pickle.loads(pickle.dumps(self.pooled(clip, pixels, 0)))
        assert type(restored) is torch.Tensor


def calls(model):
    """Ways to use a model from one thread, each with its own result."""
    pixels, task_ids, _ = prompted.batch(model, per_task=1)
    images = adapted.pictures(2)

    def features(task):
        return lambda: model.get_image_features(pixel_values=pixels, task_ids=task).pooler_output

    def disabled():
        with model.disable_adapter():
            return model.get_image_features(pixel_values=pixels).pooler_output

    def mixed_precision():
        with torch.autocast("cpu", torch.bfloat16):
            return model.classify(pixels, task_ids).logits

    def predicted(task):
        return lambda: torch.tensor([sorted(each.values()) for each in model.predict(images, task=task)])

    return [
        *(features(task) for task in (0, 1, 2)),
        lambda: model.classify(pixels, task_ids).logits,
        *(predicted(task) for task in model.task_names),
        disabled,
        mixed_precision,
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_eight_threads_compute_what_one_does(dropout):
    model = prompted.prompted_clip(torch.float32).eval()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = dropout
    if dropout:
        model.train()  # the base in training mode drops attention weights, but not where `predict` asks for an answer
    chosen = calls(model)[4:7] if dropout else calls(model)
    with torch.no_grad():
        serial = [call() for call in chosen]

    def threaded(number):
        with torch.no_grad():
            return chosen[number % len(chosen)]()

    with ThreadPoolExecutor(8) as pool:
        for number, result in enumerate(pool.map(threaded, range(20 * len(chosen)))):
            assert torch.equal(result, serial[number % len(chosen)]), f"call {number % len(chosen)}"


def test_disabling_in_one_thread_leaves_the_others_alone():
    model = prompted.prompted_clip().eval()
    pixels, task_ids, _ = prompted.batch(model)
    expected = model.classify(pixels, task_ids).logits
    with ThreadPoolExecutor(1) as pool, model.disable_adapter():
        assert not model.get_model_status().enabled
        assert torch.equal(pool.submit(lambda: model.classify(pixels, task_ids).logits).result(), expected)
        assert not torch.equal(model.classify(pixels, task_ids).logits, expected)
    assert model.get_model_status().enabled


def test_importing_the_package_hooks_into_nothing():
    script = """
import torch, peft, peft.tuners.tuners_utils
from torch.nn.modules import module
containers = {name: value for name, value in vars(module).items() if name.startswith("_global_")}
hooks = {name: len(value) for name, value in containers.items() if hasattr(value, "__len__")}
classes = {(m, name): value for m in (peft, torch.nn) for name, value in vars(m).items() if isinstance(value, type)}
attributes = {cls: dict(vars(cls)) for cls in {*classes.values()}}
import jscpt_peft
assert hooks == {name: len(value) for name, value in vars(module).items() if name in hooks}
assert all(vars(m)[name] is value for (m, name), value in classes.items())
enums = {peft.PeftType}  # which has one member more
assert all(dict(vars(cls)) == found for cls, found in attributes.items() if cls not in enums)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_attributes_of_wrapped_layers_remain_reachable():
    clip = prompted.prompted_clip().get_base_model()
    assert clip.vision_model.encoder.layers[0].self_attn.k_proj.in_features == 32
    assert clip.vision_model.config.hidden_size == 32 and clip.text_model.config.hidden_size == 24
    assert (clip.visual_projection.in_features, clip.visual_projection.out_features) == (32, 20)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clip.vision_model.nothing


def test_methods_are_seen():
    model = prompted.prompted_clip()
    assert type(model) is JSCPTPeftModel
    methods = {"classify", "predict", "prompt_tokens", "set_task", "add_task", "train_only", "export_task"}
    assert methods | {"task_names", "trained_task"} <= set(dir(model))
    assert "present_tasks_only" in JSCPTPeftModel.classify.__doc__


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_compute_the_same_and_share_nothing(copied):
    model = prompted.prompted_clip().eval()
    batch = prompted.batch(model)
    expected = model.classify(*batch).logits
    other = copied(model)
    assert torch.equal(other.classify(*batch).logits, expected)
    with torch.no_grad():
        for parameter in other.task_adapter.parameters():
            parameter.zero_()
    assert torch.equal(model.classify(*batch).logits, expected)
    other.set_task("sketch")
    assert model.backbone.context.task is None


def test_meta_and_back():
    model = prompted.prompted_clip().eval()
    batch = prompted.batch(model)
    expected, state = model.classify(*batch).logits, copy.deepcopy(model.state_dict())
    model.to("meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.prompt_tokens("vision").shape == (3, 3, 5, 32)
    model.to_empty(device="cpu").load_state_dict(state)
    fresh = oracles.tiny_clip()
    for name, buffer in fresh.named_buffers():  # position ids are in no state dict
        path = name.replace("model.", "model.base_layer.", 1)
        model.get_base_model().get_buffer(path).copy_(buffer)
    assert torch.equal(model.classify(*batch).logits, expected)


@pytest.mark.slow
class TestCompiled:
    def test_after_the_adapter(self):
        model = prompted.prompted_clip(torch.float32).eval()
        pixels, task_ids, _ = prompted.batch(model)
        ids = torch.tensor([[oracles.TINY_SOS, 3, oracles.TINY_EOS]])
        with torch.no_grad():
            expected = model(input_ids=ids, pixel_values=pixels[:1], task_ids=task_ids[:1]).logits_per_image
            compiled = torch.compile(model, backend="eager")
            given = compiled(input_ids=ids, pixel_values=pixels[:1], task_ids=task_ids[:1]).logits_per_image
            torch.testing.assert_close(given, expected)
            classify = torch.compile(model.classify, backend="eager")
            torch.testing.assert_close(classify(pixels, task_ids).logits, model.classify(pixels, task_ids).logits)

    def test_in_place_before_the_adapter(self):
        clip = oracles.tiny_clip(dtype=torch.float32)
        clip.compile(backend="eager")
        clip.vision_model.compile(backend="eager")
        plain = prompted.prompted_clip(torch.float32).eval()
        config = copy.deepcopy(plain.peft_config["default"])
        model = get_peft_model(clip, config)
        model.load_state_dict({name: each for name, each in plain.state_dict().items()})
        pixels, task_ids, _ = prompted.batch(plain)
        with torch.no_grad():
            assert torch.equal(model.eval().classify(pixels, task_ids).logits, plain.classify(pixels, task_ids).logits)
            expected = plain.get_image_features(pixel_values=pixels, task_ids=task_ids).pooler_output
            given = model.get_image_features(pixel_values=pixels, task_ids=task_ids).pooler_output
            torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("compiled", ["whole", "tower"])
def test_a_compiled_base_is_refused_before_anything_changes(tmp_path, compiled):
    prompted.prompted_clip().save_pretrained(tmp_path)
    clip = oracles.tiny_clip()
    base = torch.compile(clip) if compiled == "whole" else clip
    if compiled == "tower":
        clip.vision_model = torch.compile(clip.vision_model)
    config = JSCPTConfig(tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids())
    for put in (lambda: get_peft_model(base, config), lambda: PeftModel.from_pretrained(base, tmp_path)):
        with pytest.raises((TypeError, ValueError), match="OptimizedModule"):
            put()
    assert isinstance(clip, CLIPModel) and not any("jscpt" in name for name, _ in clip.named_parameters())


def test_adapter_files_hold_the_adapter_alone():
    model = prompted.prompted_clip()
    tensors = get_peft_model_state_dict(model)
    assert all(".jscpt_adapters." in name and ".default." not in name for name in tensors)
