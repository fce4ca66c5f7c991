"""MaPLe as published: vision prompts at the end of the sequence, in the first block from before the layer norm on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import CLIPModel

from . import attention, text_features


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:  # noqa: ARG001
    """Features `[B, D]` of images; all tasks have the same prompts."""
    vision = clip.vision_model
    names = ("text", "weight", "bias")
    prompts = [linear(*each) for each in zip(*(parameters[f"prompts.{name}"] for name in names), strict=True)]
    tokens = vision.embeddings(pixel_values)
    tokens = vision.pre_layrnorm(torch.cat([tokens, prompts[0].expand(len(tokens), -1, -1)], dim=1))
    for block, layer in enumerate(vision.encoder.layers):
        if 0 < block < len(prompts):
            deep = prompts[block].expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens[:, : -deep.shape[1]], deep], dim=1)
        tokens = tokens + attention(layer.self_attn, layer.layer_norm1(tokens), causal=False)
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
    return clip.visual_projection(vision.post_layernorm(tokens[:, 0]))


def class_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, token_ids: list[list[int]]) -> Tensor:  # noqa: ARG001
    """Features `[C, D]` of classes."""
    return text_features(clip, parameters["prompts.text"], token_ids)
