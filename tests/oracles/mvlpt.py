"""UPT, which MVLPT trains for all tasks: torch's own attention over text and vision tokens in one sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, multi_head_attention_forward
from transformers import CLIPModel

from . import image_features as plain_image_features
from . import text_features


def prompts(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`[1, n, d_l]` text and `[depth, n, d_v]` vision prompts."""

    def mapped(tokens: Tensor, name: str) -> Tensor:
        return linear(tokens, parameters[f"prompts.{name}_weight"], parameters[f"prompts.{name}_bias"])

    def normed(tokens: Tensor, name: str) -> Tensor:
        weight, bias = parameters[f"prompts.{name}_weight"], parameters[f"prompts.{name}_bias"]
        return layer_norm(tokens, (128,), weight, bias)

    text, vision = parameters["prompts.text"], parameters["prompts.vision"]
    tokens = torch.cat([mapped(text, "text_in"), *(mapped(block, "vision_in") for block in vision)])
    attention = [parameters[f"prompts.{name}"] for name in ("attention_weight", "attention_bias")]
    output = [parameters[f"prompts.{name}"] for name in ("attended_weight", "attended_bias")]
    same = [normed(tokens, "norm1")] * 3
    tokens = tokens + multi_head_attention_forward(*same, 128, 1, *attention, None, None, False, 0.0, *output)[0]
    wide = mapped(normed(tokens, "norm2"), "wide")
    tokens = tokens + mapped(wide * torch.sigmoid(1.702 * wide), "narrow")
    return mapped(tokens[: len(text)], "text_out")[None], mapped(tokens[len(text) :], "vision_out").view_as(vision)


def image_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, pixel_values: Tensor) -> Tensor:  # noqa: ARG001
    """Features `[B, D]` of images; all tasks have the same prompts."""
    return plain_image_features(clip, prompts(parameters)[1], pixel_values)


def class_features(clip: CLIPModel, parameters: dict[str, Tensor], task: int, token_ids: list[list[int]]) -> Tensor:  # noqa: ARG001
    """Features `[C, D]` of classes."""
    return text_features(clip, prompts(parameters)[0], token_ids)
