"""The frozen weights of a block in the precision of autocast: cast once, not at every use.

Autocast keeps what it casts only of weights that are trained. A prompted model trains none of its base model: 149
million numbers were read and written anew in every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


class CastLinear(NamedTuple):
    """Weight `[out, in]` and bias `[out]` of one or several linear maps of the same input."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, linears: list[nn.Linear], dtype: torch.dtype) -> CastLinear:
        """Copies of their weights, one under the other."""
        return cls(*(torch.cat([getattr(each, name).detach().to(dtype) for each in linears]) for name in cls._fields))


class CastWeights(NamedTuple):
    """Copies of the linear maps of a block."""

    queries_keys_values: CastLinear
    out: CastLinear
    wide: CastLinear
    narrow: CastLinear


@torch.no_grad()
def cast_weights(layer: CLIPEncoderLayer, dtype: torch.dtype) -> CastWeights | None:
    """Copies of a block's weights; `None` where its linear maps are not plain frozen ones, which are then called."""
    attention, mlp = layer.self_attn, layer.mlp
    inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
    for linear in (*inputs, attention.out_proj, mlp.fc1, mlp.fc2):
        watched = type(linear) is nn.Linear and (linear._forward_hooks or linear._forward_pre_hooks)
        if type(linear) is not nn.Linear or linear.bias is None or linear.weight.requires_grad or watched:
            return None
    groups = (inputs, [attention.out_proj], [mlp.fc1], [mlp.fc2])
    with torch.inference_mode(False):  # kept for training too, where inference tensors may not take part
        return CastWeights(*(CastLinear.of(group, dtype) for group in groups))
