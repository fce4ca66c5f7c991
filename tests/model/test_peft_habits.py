"""All of PEFT's habits: save, load, several adapters, disable, delete, unload, status; and how an adapter starts."""

from __future__ import annotations

import oracles
import prompted
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file

from jscpt_peft import JSCPTConfig, JSCPTModel, JSCPTPeftModel
from jscpt_peft.model.registration import add_peft_type, register

IDS = torch.tensor(prompted.class_token_ids()["clipart"][0])[None]
BIRDS = {"birds": ["owl", "hen"]}


@torch.no_grad()  # in bfloat16 a backward has another kernel, with other roundings
def logits(model):
    return model.classify(*prompted.batch(model)[:2]).logits


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_save_and_load_need_neither_tokenizer_nor_base_weights(tmp_path, dtype):
    model = prompted.prompted_clip(dtype)
    own = [parameter for name, parameter in model.named_parameters() if ".jscpt_" in name]
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".jscpt_" in name} != set()
    assert {each.dtype for each in own} == {torch.promote_types(dtype, torch.float32)}  # of a bfloat16 base too
    model.classify(*prompted.batch(model)).loss.backward()
    model.save_pretrained(tmp_path)
    tensors, size = load_file(tmp_path / "adapter_model.safetensors"), sum(each.nbytes for each in own)
    assert sum(tensor.nbytes for tensor in tensors.values()) == size
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < size + 4096
    assert all(".jscpt_adapters." in name and ".default" not in name for name in tensors)
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(dtype=dtype), tmp_path)
    assert torch.equal(logits(loaded), logits(model)) and not trainable(loaded)
    further = PeftModel.from_pretrained(oracles.tiny_clip(dtype=dtype), tmp_path, is_trainable=True)
    assert trainable(further) == trainable(model)


def test_adapter_for_another_width_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another base model: vision_width 32 \(this base: 64\)"):
        PeftModel.from_pretrained(oracles.tiny_clip(vision_width=64), tmp_path)


# ---- several adapters -----------------------------------------------------------------------------------------------


def test_second_adapter_made_on_the_meta_device(tmp_path, model):
    prompted.prompted_clip(tasks=BIRDS, init_seed=5).save_pretrained(tmp_path)
    others = {}
    for low in (False, True):
        model.load_adapter(tmp_path, f"other {low}", low_cpu_mem_usage=low)
        model.set_adapter(f"other {low}")
        others[low] = logits(model)
    assert torch.equal(others[False], others[True]) and model.task_names == ["birds"]
    model.delete_adapter("other True")
    assert not any("other True" in name for name, _ in model.named_parameters())


def test_one_adapter_at_a_time(model, pixels):
    model.add_adapter("other", prompted.config(tasks=BIRDS))
    assert trainable(model) and not any(".other." in name for name in trainable(model))
    model.set_adapter("other")
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".other." in name}
    with pytest.raises(ValueError, match="`adapter_names` is not supported"):
        model(input_ids=IDS, pixel_values=pixels, task_ids=0, adapter_names=["default"] * len(pixels))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"one adapter at a time, but \['default', 'other'\] are active"):
        logits(model)


# ---- without it -----------------------------------------------------------------------------------------------------


def test_disabled_or_unloaded_it_is_the_base_model_bit_for_bit(model, batch):
    clip, (pixels, task_ids, labels) = oracles.tiny_clip(), batch
    plain = clip(input_ids=IDS, pixel_values=pixels)

    def same(output):
        return all(torch.equal(output[name], plain[name]) for name in ("logits_per_image", "image_embeds"))

    with model.disable_adapter():
        assert same(model(input_ids=IDS, pixel_values=pixels))
        output = model.classify(pixels, task_ids, labels)  # zero-shot
    torch.testing.assert_close(output.image_embeds, clip.get_image_features(pixels).pooler_output)
    assert torch.equal(output.image_embeds, output.selected_embeds)
    for row, ids in enumerate(prompted.class_token_ids()["sketch"]):
        text = clip.get_text_features(torch.tensor([ids])).pooler_output[0]
        torch.testing.assert_close(output.class_embeds[2, row], text)
    model.set_task("photo")
    assert not same(model(input_ids=IDS, pixel_values=pixels))
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    base = model.unload()
    assert type(base) is type(clip) and base.state_dict().keys() == clip.state_dict().keys()
    assert same(base(input_ids=IDS, pixel_values=pixels))


def test_status_and_parameter_count(model, capsys):
    status = model.get_model_status()
    assert status.peft_types == {"default": "JSCPT"}
    assert (status.enabled, status.active_adapters) == (True, ["default"])
    assert status.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    kinds = {layer.module_type for layer in model.get_layer_status()}
    assert kinds == {"PromptedCLIPVision", "PromptedCLIPText", "SelectingProjection"}
    model.print_trainable_parameters()
    assert f"trainable params: {status.trainable_params:,}" in capsys.readouterr().out


def test_registration_is_idempotent_and_refuses_a_foreign_holder(monkeypatch):
    register("jscpt", JSCPTConfig, JSCPTModel, JSCPTPeftModel)
    member = add_peft_type("JSCPT")
    assert type(member)("JSCPT") is member and member in list(type(member))
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, member, LoraConfig)
    with pytest.raises(RuntimeError, match="already registered by `peft"):
        register("jscpt", JSCPTConfig, JSCPTModel, JSCPTPeftModel)


# ---- the start ------------------------------------------------------------------------------------------------------


def test_start_of_the_prompts_depends_on_the_seed_alone():
    def prompts(seed, tower="vision"):
        torch.rand(1)  # another global state
        clip = oracles.tiny_clip(text_width=32, text_heads=4)  # towers of one width
        return prompted.prompted_clip(clip=clip, init_seed=seed).prompt_tokens(tower)

    assert torch.equal(prompts(3), prompts(3))
    assert not torch.equal(prompts(3), prompts(4)) and not torch.equal(prompts(3), prompts(3, "text"))


def test_training_starts_from_clips_own_predictions():
    model = get_peft_model(oracles.tiny_clip(), prompted.config())
    output = model.classify(*prompted.batch(model))
    torch.testing.assert_close(output.selected_embeds, output.image_embeds)


def test_words_start_the_shared_text_prompts():
    model = prompted.prompted_clip(prompt_init="a photo", prompt_init_token_ids=[4, 9])
    words = model.backbone.word_embeddings([4, 9, 4])
    shared = model.prompt_tokens("text")[0, :, :3]
    assert torch.equal(shared, words.expand_as(shared))
