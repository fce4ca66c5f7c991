"""All of PEFT's habits: save, load, several adapters, disable, delete, unload, status."""

from __future__ import annotations

import copy
import pickle

import oracles
import prompted
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import jscpt_peft
from jscpt_peft import JSCPTConfig


def features(model, task_ids=None):
    pixels, ids, _ = prompted.batch(model)
    return model.classify(pixels, ids if task_ids is None else task_ids).logits


def test_only_the_adapter_is_trainable():
    model = prompted.prompted_clip()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".jscpt_" in name}
    assert trainable


def test_save_and_load_need_neither_tokenizer_nor_base_weights(tmp_path):
    model = prompted.prompted_clip()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    torch.testing.assert_close(features(loaded), features(model), atol=0, rtol=0)

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    adapter = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    assert sum(tensor.nbytes for tensor in tensors.values()) == adapter
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < adapter + 4096
    assert all(".jscpt_" in name for name in tensors)


def test_loaded_adapter_is_frozen_unless_trainable_is_asked_for(tmp_path):
    prompted.prompted_clip().save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    trainable = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path, is_trainable=True)
    assert any(parameter.requires_grad for parameter in trainable.parameters())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_second_adapter_with_other_tasks(tmp_path, low_cpu_mem_usage):
    other = prompted.prompted_clip(tasks={"birds": ["owl", "hen"]}, init_seed=5, prompt_depth=1)
    other.save_pretrained(tmp_path)
    model = prompted.prompted_clip()
    first = features(model)
    model.load_adapter(tmp_path, "other", low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(features(model), first, atol=0, rtol=0)
    model.set_adapter("other")
    assert model.task_names == ["birds"]
    torch.testing.assert_close(features(model), features(other), atol=0, rtol=0)
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(features(model), first, atol=0, rtol=0)
    assert not any(".other" in name for name, _ in model.named_parameters())


def test_further_adapter_does_not_become_trainable():
    model = prompted.prompted_clip()
    tasks = {"birds": ["owl", "hen"]}
    model.add_adapter("other", JSCPTConfig(tasks=tasks, class_token_ids=prompted.class_token_ids(tasks)))
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".other" in name)
    assert any(p.requires_grad for name, p in model.named_parameters() if ".default" in name)
    model.set_adapter("other")
    assert all(p.requires_grad for name, p in model.named_parameters() if ".other" in name)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".default" in name)


def test_disabled_adapter_is_the_base_model_bit_for_bit():
    clip = oracles.tiny_clip()
    model = prompted.prompted_clip()
    pixels, _, _ = prompted.batch(model)
    ids = torch.tensor(prompted.class_token_ids()["clipart"][0])[None]
    with model.disable_adapter():
        disabled = model(input_ids=ids, pixel_values=pixels)
    plain = clip(input_ids=ids, pixel_values=pixels)
    assert torch.equal(disabled.logits_per_image, plain.logits_per_image)
    assert torch.equal(disabled.image_embeds, plain.image_embeds)
    model.set_task("photo")
    assert not torch.equal(model(input_ids=ids, pixel_values=pixels).image_embeds, plain.image_embeds)


def test_disabled_adapter_classifies_zero_shot():
    clip, model = oracles.tiny_clip(), prompted.prompted_clip()
    pixels, task_ids, labels = prompted.batch(model)
    with model.disable_adapter():
        output = model.classify(pixels, task_ids, labels)
    ids = prompted.class_token_ids()["sketch"]
    images, classes = clip.get_image_features(pixels).pooler_output, output.class_embeds[2, :4]
    torch.testing.assert_close(output.image_embeds, images)
    for row, token_ids in enumerate(ids):
        text = clip.get_text_features(torch.tensor([token_ids])).pooler_output[0]
        torch.testing.assert_close(classes[row], text)
    assert torch.equal(output.image_embeds, output.selected_embeds)


def test_unload_gives_back_the_base_model():
    clip, model = oracles.tiny_clip(), prompted.prompted_clip()
    pixels, _, _ = prompted.batch(model)
    base = model.unload()
    assert type(base) is type(clip)
    assert base.state_dict().keys() == clip.state_dict().keys()
    assert torch.equal(base.get_image_features(pixels).pooler_output, clip.get_image_features(pixels).pooler_output)


def test_merging_is_refused():
    with pytest.raises(ValueError, match="cannot be merged"):
        prompted.prompted_clip().merge_and_unload()


def test_status_and_parameter_count(capsys):
    model = prompted.prompted_clip()
    status = model.get_model_status()
    assert status.peft_types == {"default": "JSCPT"}
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {layer.module_type for layer in model.get_layer_status()} == {
        "PromptedVision",
        "PromptedText",
        "FeatureSelection",
    }
    model.print_trainable_parameters()
    assert f"trainable params: {status.trainable_params:,}" in capsys.readouterr().out


def test_copies_are_independent():
    model = prompted.prompted_clip()
    other = copy.deepcopy(model)
    other.set_task("sketch")
    assert model.router.task is None
    with torch.no_grad():
        other.backbone.vision.jscpt_prompts["default"].shared.zero_()
    assert model.backbone.vision.jscpt_prompts["default"].shared.abs().sum() > 0


def test_start_of_the_prompts_depends_on_the_seed_alone():
    torch.manual_seed(1)
    one = prompted.prompted_clip(init_seed=3)
    torch.manual_seed(2)
    same, different = prompted.prompted_clip(init_seed=3), prompted.prompted_clip(init_seed=4)
    assert torch.equal(one.prompt_tokens("vision"), same.prompt_tokens("vision"))
    assert not torch.equal(one.prompt_tokens("vision"), different.prompt_tokens("vision"))


def test_training_starts_from_clips_own_predictions():
    clip = oracles.tiny_clip()
    config = JSCPTConfig(tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids(), towers="text")
    model = get_peft_model(clip, config)
    pixels, task_ids, _ = prompted.batch(model)
    output = model.classify(pixels, task_ids)
    torch.testing.assert_close(output.selected_embeds, output.image_embeds)


def test_no_two_parts_start_alike():
    clip = oracles.tiny_clip(text_width=32, text_heads=4)
    config = JSCPTConfig(tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids())
    model = get_peft_model(clip, config)
    assert not torch.equal(model.prompt_tokens("vision"), model.prompt_tokens("text"))


def test_base_in_bfloat16_has_a_float32_adapter(tmp_path):
    config = JSCPTConfig(tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids())
    model = get_peft_model(oracles.tiny_clip(dtype=torch.bfloat16), config)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    pixels, task_ids, labels = prompted.batch(model)
    model.classify(pixels, task_ids, labels).loss.backward()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.bfloat16), tmp_path)
    assert torch.equal(features(loaded), features(model))


def test_several_adapters_in_one_batch_are_refused():
    model = prompted.prompted_clip()
    pixels, _, _ = prompted.batch(model)
    ids = torch.tensor(prompted.class_token_ids()["clipart"][0])[None]
    with pytest.raises(ValueError, match="`adapter_names` is not supported"):
        model(input_ids=ids, pixel_values=pixels, task_ids=0, adapter_names=["default"] * len(pixels))


def test_words_start_the_shared_text_prompts():
    config = JSCPTConfig(
        tasks=prompted.TASKS,
        class_token_ids=prompted.class_token_ids(),
        prompt_init="a photo",
        prompt_init_token_ids=[4, 9],
        num_shared_tokens=3,
    )
    model = get_peft_model(oracles.tiny_clip(), config)
    table = model.backbone.text.base_layer.embeddings.token_embedding.weight
    shared = model.prompt_tokens("text")[0, :, :3]
    assert torch.equal(shared, table[[4, 9, 4]].expand_as(shared))


def test_adapter_for_another_width_is_refused(tmp_path):
    prompted.prompted_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another base model: vision_width 32 \(this base: 64\)"):
        PeftModel.from_pretrained(oracles.tiny_clip(vision_width=64), tmp_path)


def test_registration_is_idempotent_and_refuses_a_foreign_holder(monkeypatch):
    from peft import LoraConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from jscpt_peft.model.registration import add_peft_type, register

    register("jscpt", JSCPTConfig, jscpt_peft.JSCPTModel)
    member = add_peft_type("JSCPT")
    assert type(member)("JSCPT") is member
    assert member in list(type(member))
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, member, LoraConfig)
    with pytest.raises(RuntimeError, match="already registered by `peft"):
        register("jscpt", JSCPTConfig, jscpt_peft.JSCPTModel)


def test_a_used_model_can_be_pickled_and_copied():
    """What it keeps of earlier calls is left behind, and computed again."""
    model = prompted.prompted_clip().eval()
    pixels, task_ids, _ = prompted.batch(model)
    with torch.no_grad():
        wanted = model.classify(pixels, task_ids).logits
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(other.classify(pixels, task_ids).logits, wanted)
            other.backbone.text.jscpt_prompts["default"].shared.zero_()
            assert not torch.equal(other.classify(pixels, task_ids).logits, wanted)
            assert torch.equal(model.classify(pixels, task_ids).logits, wanted)


def test_texts_without_prompts_are_encoded_once():
    """Their class features are constants, in training too."""
    model = prompted.prompted_clip(towers="vision")
    pixels, task_ids, labels = prompted.batch(model)
    tower, passes = model.backbone.text, []
    pooled = tower.pooled
    tower.pooled = lambda *arguments: passes.append(1) or pooled(*arguments)
    for _ in range(3):
        model.classify(pixels, task_ids, labels, present_tasks_only=True).loss.backward()
    assert len(passes) == len(prompted.TASKS)  # one a task, the first time


def test_an_empty_batch():
    model = prompted.prompted_clip()
    nothing = torch.zeros(0, 3, 32, 32, dtype=torch.float64)
    for present_tasks_only in (False, True):
        task_ids = torch.zeros(0, dtype=torch.long)
        assert model.classify(nothing, task_ids, present_tasks_only=present_tasks_only).logits.shape == (0, 4)
