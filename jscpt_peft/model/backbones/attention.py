"""One transformer block of CLIP on tokens that also see prompts, which are keys and values only.

A deep prompt's output is thrown away at every block, so a prompt needs no query, no MLP and no place in the sequence:
in block l it is only `k_proj/v_proj(layer_norm1(P_l))`. The functions here apply a frozen `CLIPEncoderLayer`'s own
weights; they compute what the layer computes on the concatenated sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention, CLIPEncoderLayer

from ..task_context import is_deterministic
from ..task_rows import TaskRows
from . import double_backward

QUICK_GELU_SLOPE = 1.702


class KeysValues(NamedTuple):
    """Keys and values of attention, each `[..., heads, tokens, head width]`."""

    keys: torch.Tensor
    values: torch.Tensor

    def spread(self, rows: TaskRows) -> KeysValues:
        """Those of each row's task, of those of the tasks."""
        return KeysValues(rows.spread(self.keys), rows.spread(self.values))

    def before(self, others: KeysValues) -> KeysValues:
        """These tokens followed by others, along the sequence."""
        return KeysValues(torch.cat([self.keys, others.keys], dim=-2), torch.cat([self.values, others.values], dim=-2))


def keys_values(layer: CLIPEncoderLayer, hidden: torch.Tensor) -> KeysValues:
    """Keys and values of the block's tokens `hidden` `[B, T, d]`."""
    return _keys_values(layer.self_attn, layer.layer_norm1(hidden))


def block(
    layer: CLIPEncoderLayer,
    hidden: torch.Tensor,
    prefix: KeysValues | None = None,
    rows: TaskRows | None = None,
    mask: torch.Tensor | None = None,
    read_out: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """One block.

    Args:
        layer: the frozen CLIP block.
        hidden: `[B, T, d]` tokens.
        prefix: keys and values that every token sees before the tokens themselves, of each task in use
            `[T, heads, n, d / heads]`.
        rows: the tasks of the sequences.
        mask: boolean, broadcastable to `[B, heads, queries, n + T]`; `True` where a query sees a key.
        read_out: `[B]` the only position whose output is wanted, or one number for all; `None`: all positions.

    Returns:
        `[B, T, d]`, or `[B, 1, d]` with `read_out`.
    """
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        if layer._gradient_checkpointing_func.keywords.get("use_reentrant"):  # it sees no tensors but its arguments
            raise ValueError(
                "gradient checkpointing with `use_reentrant=True` would lose the gradients of the prompts: switch it "
                "on with `gradient_checkpointing_kwargs={'use_reentrant': False}`."
            )
        return layer._gradient_checkpointing_func(_block, layer, hidden, prefix, rows, mask, read_out)
    return _block(layer, hidden, prefix, rows, mask, read_out)


def _block(
    layer: CLIPEncoderLayer,
    hidden: torch.Tensor,
    prefix: KeysValues | None,
    rows: TaskRows | None,
    mask: torch.Tensor | None,
    read_out: torch.Tensor | int | None,
) -> torch.Tensor:
    normed = layer.layer_norm1(hidden)
    seen = _keys_values(layer.self_attn, normed)
    if prefix is not None:
        seen = prefix.spread(rows).before(seen)
    if read_out is not None:
        hidden, normed = _at(hidden, read_out), _at(normed, read_out)
    hidden = hidden + _attend(layer.self_attn, normed, seen, mask)
    return hidden + feed_forward(layer.mlp, layer.layer_norm2(hidden))


def _at(hidden: torch.Tensor, position: torch.Tensor | int) -> torch.Tensor:
    """`[B, 1, d]` of `[B, T, d]`."""
    if isinstance(position, int):
        return hidden[:, position, None]
    every = torch.arange(hidden.shape[0], device=hidden.device)  # `len` would fix the batch size in an export
    return hidden[every, position, None]


def _keys_values(attention: CLIPAttention, normed: torch.Tensor) -> KeysValues:
    return KeysValues(_heads(attention, attention.k_proj(normed)), _heads(attention, attention.v_proj(normed)))


def _heads(attention: CLIPAttention, projected: torch.Tensor) -> torch.Tensor:
    return projected.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(-3, -2)


def _attend(
    attention: CLIPAttention, normed: torch.Tensor, seen: KeysValues, mask: torch.Tensor | None
) -> torch.Tensor:
    queries = _heads(attention, attention.q_proj(normed))
    dropout = attention.dropout if attention.training and not is_deterministic() else 0.0
    implementation = attention.config._attn_implementation
    if double_backward.is_double_backward():
        mixed = double_backward.attention(queries, *seen, mask, dropout, attention.scale)
    elif implementation == "sdpa":
        mixed = F.scaled_dot_product_attention(
            queries, *seen, attn_mask=mask, dropout_p=dropout, scale=attention.scale
        )
    elif implementation == "eager":
        scores = queries @ seen.keys.transpose(-2, -1) * attention.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        # Softmax in float32 for half precisions, as CLIP's own eager attention does; float64 stays float64.
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(queries.dtype)
        mixed = F.dropout(weights, dropout) @ seen.values
    else:
        raise ValueError(
            f"`attn_implementation` {implementation!r} is not supported with prompts: load the base model with "
            '`attn_implementation="sdpa"` or `"eager"`.'
        )
    return attention.out_proj(mixed.transpose(-3, -2).flatten(-2))


def feed_forward(mlp: CLIPMLP, hidden: torch.Tensor) -> torch.Tensor:
    """The block's MLP `[..., d] -> [..., d]`.

    CLIP's activation a·σ(1.702 a) equals silu(1.702 a) / 1.702. With both factors folded into the matrix products,
    one elementwise pass over the widest activation is left of three (and one saved tensor instead of three).
    """
    plain = type(mlp.fc1) is nn.Linear and type(mlp.fc2) is nn.Linear
    if not (plain and isinstance(mlp.activation_fn, QuickGELUActivation)):
        return mlp(hidden)
    wide = _scaled_linear(mlp.fc1, hidden.flatten(0, -2), QUICK_GELU_SLOPE, QUICK_GELU_SLOPE)
    return _scaled_linear(mlp.fc2, double_backward.silu(wide), 1 / QUICK_GELU_SLOPE, 1.0).view_as(hidden)


def _scaled_linear(linear: nn.Linear, rows: torch.Tensor, product_scale: float, bias_scale: float) -> torch.Tensor:
    return torch.addmm(linear.bias, rows, linear.weight.t(), alpha=product_scale, beta=bias_scale)
