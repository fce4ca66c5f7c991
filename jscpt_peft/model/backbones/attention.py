"""One transformer block of CLIP on tokens that also see prompts, which are keys and values only.

A deep prompt's output is thrown away at every block, so a prompt needs no query, no MLP and no place in the sequence:
in block l it is only `k_proj/v_proj(layer_norm1(P_l))`. The functions here apply a frozen `CLIPEncoderLayer`'s own
weights; they compute what the layer computes on the concatenated sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention, CLIPEncoderLayer

from ..context_variables import set_within
from ..task_context import is_deterministic
from ..task_rows import TaskRows
from . import double_backward
from .cast_weights import CastLinear, CastWeights

QUICK_GELU_SLOPE = 1.702
FEW_KEYS = 128


class KeysValues(NamedTuple):
    """Keys and values of attention, each `[..., heads, tokens, head width]`."""

    keys: Tensor
    values: Tensor

    def before(self, others: KeysValues, rows: TaskRows | None = None) -> KeysValues:
        """These tokens, or those of the rows' tasks, followed by others, along the sequence."""
        return KeysValues(*(_joined(*each, rows) for each in zip(self, others, strict=True)))


def _joined(first: Tensor, second: Tensor, rows: TaskRows | None) -> Tensor:
    if rows is None:
        return torch.cat([first, second], dim=-2)
    if rows.each is None:
        return torch.cat([rows.spread(first), second], dim=-2)
    expanded = first.unsqueeze(1).expand(-1, rows.each, *first.shape[1:])  # no copy but that of `cat`
    return torch.cat([expanded, second.unflatten(0, expanded.shape[:2])], dim=-2).flatten(0, 1)


def keys_values(layer: CLIPEncoderLayer, hidden: Tensor, cast: CastWeights | None = None) -> KeysValues:
    """Keys and values of the block's tokens `hidden` `[B, T, d]`; `cast` as in `block`."""
    return KeysValues(*_projected(layer.self_attn, layer.layer_norm1(hidden), cast, "kv"))


def block(
    layer: CLIPEncoderLayer,
    hidden: Tensor,
    prefix: KeysValues | None = None,
    rows: TaskRows | None = None,
    mask: Tensor | None = None,
    read_out: Tensor | int | None = None,
    cast: CastWeights | None = None,
) -> Tensor:
    """One block.

    Args:
        layer: the frozen CLIP block.
        hidden: `[B, T, d]` tokens.
        prefix: keys and values that every token sees before the tokens themselves, of each task in use
            `[T, heads, n, d / heads]`.
        rows: the tasks of the sequences.
        mask: boolean, broadcastable to `[B, heads, queries, n + T]`; `True` where a query sees a key.
        read_out: `[B]` the only position whose output is wanted, or one number for all; `None`: all positions.
        cast: copies of the layer's weights that stand in their place.

    Returns:
        `[B, T, d]`, or `[B, 1, d]` with `read_out`.
    """
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        if layer._gradient_checkpointing_func.keywords.get("use_reentrant"):  # it sees no tensors but its arguments
            raise ValueError(
                "gradient checkpointing with `use_reentrant=True` would lose the gradients of the prompts: switch it "
                "on with `gradient_checkpointing_kwargs={'use_reentrant': False}`."
            )
        return layer._gradient_checkpointing_func(_block, layer, hidden, prefix, rows, mask, read_out, cast)
    backend = _backend.get() if torch.is_grad_enabled() and not torch.compiler.is_compiling() else None
    function = _block if backend is None else _compiled(backend)
    return function(layer, hidden, prefix, rows, mask, read_out, cast)


_backend: ContextVar[str | None] = ContextVar("backend", default=None)


def compiled_blocks(backend: str) -> AbstractContextManager[None]:
    """Within, this thread's blocks run compiled where gradients are wanted; these have no second derivative."""
    return set_within(_backend, backend)


@cache
def _compiled(backend: str) -> Callable[..., Tensor]:
    return torch.compile(_block, backend=backend, dynamic=False)


def _block(
    layer: CLIPEncoderLayer,
    hidden: Tensor,
    prefix: KeysValues | None,
    rows: TaskRows | None,
    mask: Tensor | None,
    read_out: Tensor | int | None,
    cast: CastWeights | None,
) -> Tensor:
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    if read_out is None:
        queries, *seen = _projected(attention, normed, cast, "qkv")
    else:
        seen = _projected(attention, normed, cast, "kv")
        hidden = _at(hidden, read_out)
        (queries,) = _projected(attention, _at(normed, read_out), cast, "q")
    seen = KeysValues(*seen)
    if prefix is not None:
        seen = prefix.before(seen, rows)
    mixed = _attend(attention, queries, seen, mask).transpose(-3, -2).flatten(-2)
    hidden = hidden + (attention.out_proj(mixed) if cast is None else F.linear(mixed, *cast.out))
    return hidden + feed_forward(layer.mlp, layer.layer_norm2(hidden), cast)


def _at(hidden: Tensor, position: Tensor | int) -> Tensor:
    """`[B, 1, d]` of `[B, T, d]`."""
    if isinstance(position, int):
        return hidden[:, position, None]
    every = torch.arange(hidden.shape[0], device=hidden.device)  # `len` would fix the batch size in an export
    return hidden[every, position, None]


def _projected(attention: CLIPAttention, normed: Tensor, cast: CastWeights | None, wanted: str) -> list[Tensor]:
    """Those of queries, keys and values of normed tokens `[B, T, d]` that are wanted; of copies in one product."""
    if cast is None:
        return [_heads(attention, getattr(attention, f"{name}_proj")(normed)) for name in wanted]
    width = normed.shape[-1]
    at = slice("qkv".index(wanted[0]) * width, ("qkv".index(wanted[-1]) + 1) * width)
    joint = F.linear(normed, *(each[at] for each in cast.queries_keys_values))
    return [_heads(attention, each) for each in joint.chunk(len(wanted), dim=-1)]


def _heads(attention: CLIPAttention, projected: Tensor) -> Tensor:
    return projected.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(-3, -2)


def _attend(attention: CLIPAttention, queries: Tensor, seen: KeysValues, mask: Tensor | None) -> Tensor:
    dropout = attention.dropout if attention.training and not is_deterministic() else 0.0
    implementation = attention.config._attn_implementation
    # In bfloat16 a CPU takes twice as long for the fused kernel's backward, where there are few keys.
    on_cpu = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
    slow = on_cpu and seen.keys.requires_grad and seen.keys.shape[-2] <= FEW_KEYS
    if double_backward.is_double_backward() or (slow and implementation == "sdpa"):
        return double_backward.attention(queries, *seen, mask, dropout, attention.scale)
    if implementation == "sdpa":
        return F.scaled_dot_product_attention(queries, *seen, attn_mask=mask, dropout_p=dropout, scale=attention.scale)
    if implementation == "eager":
        scores = queries @ seen.keys.transpose(-2, -1) * attention.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        # Softmax in float32 for half precisions, as CLIP's own eager attention does; float64 stays float64.
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(queries.dtype)
        return F.dropout(weights, dropout) @ seen.values
    raise ValueError(
        f"`attn_implementation` {implementation!r} is not supported with prompts: load the base model with "
        '`attn_implementation="sdpa"` or `"eager"`.'
    )


def feed_forward(mlp: CLIPMLP, hidden: Tensor, cast: CastWeights | None = None) -> Tensor:
    """The block's MLP `[..., d] -> [..., d]`.

    CLIP's activation a·σ(1.702 a) equals silu(1.702 a) / 1.702. With both factors folded into the matrix products,
    one elementwise pass over the widest activation is left of three (and one saved tensor instead of three).
    """
    plain = type(mlp.fc1) is nn.Linear and type(mlp.fc2) is nn.Linear
    if not (plain and isinstance(mlp.activation_fn, QuickGELUActivation)):
        if cast is None:
            return mlp(hidden)
        return F.linear(mlp.activation_fn(F.linear(hidden, *cast.wide)), *cast.narrow)
    first, second = (mlp.fc1, mlp.fc2) if cast is None else (cast.wide, cast.narrow)
    wide = _scaled_linear(first, hidden.flatten(0, -2), QUICK_GELU_SLOPE, QUICK_GELU_SLOPE)
    return _scaled_linear(second, double_backward.silu(wide), 1 / QUICK_GELU_SLOPE, 1.0).view_as(hidden)


def _scaled_linear(linear: nn.Linear | CastLinear, rows: Tensor, product_scale: float, bias_scale: float) -> Tensor:
    return torch.addmm(linear.bias, rows, linear.weight.t(), alpha=product_scale, beta=bias_scale)
