"""The shapes of the published CLIP models, with two of their blocks and random weights."""

from __future__ import annotations

import oracles
import prompted
import pytest
import torch
from peft import get_peft_model
from transformers import CLIPConfig, CLIPModel

from jscpt_peft import JSCPTConfig

SHAPES = {
    "ViT-B/32": {"vision": (768, 12, 32), "text": (512, 8), "projection": 512},
    "ViT-B/16": {"vision": (768, 12, 16), "text": (512, 8), "projection": 512},
    "ViT-L/14": {"vision": (1024, 16, 14), "text": (768, 12), "projection": 768},
}


@pytest.fixture(scope="module", params=SHAPES)
def clip(request):
    shape = SHAPES[request.param]
    width, heads, patch = shape["vision"]
    vision = {"hidden_size": width, "num_attention_heads": heads, "patch_size": patch, "intermediate_size": 4 * width}
    width, heads = shape["text"]
    text = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    text |= {"vocab_size": 99, "bos_token_id": oracles.TINY_SOS, "eos_token_id": oracles.TINY_EOS}
    torch.manual_seed(0)
    return CLIPModel(
        CLIPConfig(
            vision_config={**vision, "num_hidden_layers": 2, "initializer_factor": 2.0},
            text_config={**text, "num_hidden_layers": 2, "initializer_factor": 2.0},
            projection_dim=shape["projection"],
        )
    )


def test_features_of_published_shapes_equal_concatenation(clip):
    model = get_peft_model(clip, JSCPTConfig(tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids()))
    pixels, task_ids = torch.randn(3, 3, 224, 224), torch.tensor([0, 1, 2])
    with torch.no_grad():
        output, views = model.classify(pixels, task_ids), model.task_parameters()
        plain = prompted.PlainClip(model.get_base_model())
        for task, ids in enumerate(prompted.class_token_ids().values()):
            x = oracles.image_features(plain, views["vision"][task], pixels[task : task + 1])[0]
            z = oracles.text_features(plain, views["text"][task], ids)
            assert (output.image_embeds[task] - x).norm() / x.norm() < 1e-5
            assert (output.class_embeds[task, : len(ids)] - z).norm() / z.norm() < 1e-5
    model.unload()
