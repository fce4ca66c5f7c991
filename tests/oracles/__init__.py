"""The slow, obvious implementation that the tests compare the library's fast path with.

It also serves `recipes/benchmark.py` as the concatenating baseline. Nothing here is clever: prompts are concatenated
with tokens, every text runs at full length, one task at a time, attention is a softmax written out. It works on a
plain `transformers.CLIPModel` in any dtype and takes all parameters of the method as explicit tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, normalize
from transformers import CLIPConfig, CLIPModel

TINY_SOS, TINY_EOS = 97, 98


def tiny_clip(dtype: torch.dtype = torch.float64, **options: int) -> CLIPModel:
    """A random CLIP in evaluation mode whose two towers differ in width, the same for the same `options`.

    Its vocabulary has 99 ids; a text is `[TINY_SOS, words below 97 ..., TINY_EOS]` under both conventions of
    `CLIPTextModel`: `eos_token_id=98` reads at the first EOS, `eos_token_id=2` (older checkpoints) at the largest id.
    """
    return deepcopy(_made(**options)).to(dtype)  # in half the time that another one takes


@cache
def _made(
    eos_token_id: int = TINY_EOS,
    layers: int = 3,
    text_layers: int | None = None,
    vision_width: int = 32,
    vision_heads: int = 4,
    text_width: int = 24,
    text_heads: int = 3,
    projection: int = 20,
    image_size: int = 32,
    patch_size: int = 8,
    positions: int = 77,
    seed: int = 0,
) -> CLIPModel:
    config = CLIPConfig(
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": 2 * vision_width,
            "num_hidden_layers": layers,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": patch_size,
            "projection_dim": projection,
            "initializer_range": 0.2,
            "initializer_factor": 3.0,
        },
        text_config={
            "vocab_size": 99,
            "hidden_size": text_width,
            "intermediate_size": 2 * text_width,
            "num_hidden_layers": layers if text_layers is None else text_layers,
            "num_attention_heads": text_heads,
            "max_position_embeddings": positions,
            "projection_dim": projection,
            "bos_token_id": TINY_SOS,
            "eos_token_id": eos_token_id,
            "pad_token_id": 1,
            "initializer_factor": 3.0,
        },
        projection_dim=projection,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        # Transformers starts biases at zero and layer norms at one, under which a forgotten bias or a skipped norm
        # would go unnoticed; the factors of 3 above make attention far from uniform for the same reason.
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def attention(module: torch.nn.Module, tokens: Tensor, causal: bool) -> Tensor:
    """Multi-head self-attention with the projections of a `CLIPAttention`: `[B, T, d]` -> `[B, T, d]`."""
    batch, length, width = tokens.shape

    def heads(projected: Tensor) -> Tensor:
        return projected.view(batch, length, module.num_heads, module.head_dim).transpose(1, 2)

    queries, keys, values = (heads(f(tokens)) for f in (module.q_proj, module.k_proj, module.v_proj))
    scores = queries @ keys.transpose(-1, -2) * module.head_dim**-0.5
    if causal:
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    mixed = scores.softmax(dim=-1) @ values
    return module.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


def encode(layers: torch.nn.ModuleList, prompts: Tensor, tokens: Tensor, causal: bool) -> Tensor:
    """Run `tokens` `[B, T, d]`, which already hold the first block's prompts at positions 1..n, through all blocks.

    At block l < depth the n prompt positions are overwritten by `prompts[l]` (`prompts` is `[depth, n, d]`); from
    block `depth` on the last prompts are carried on as ordinary tokens.
    """
    depth, count, width = prompts.shape
    for block, layer in enumerate(layers):
        if 0 < block < depth:
            replacement = prompts[block].expand(len(tokens), count, width)
            tokens = torch.cat([tokens[:, :1], replacement, tokens[:, 1 + count :]], dim=1)
        tokens = tokens + attention(layer.self_attn, layer.layer_norm1(tokens), causal)
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
    return tokens


def image_features(clip: CLIPModel, prompts: Tensor, pixel_values: Tensor) -> Tensor:
    """Image features x of one task (paper, section 3.2; VPT-deep, MaPLe).

    Args:
        prompts: `[depth, n, d_v]`, n may be 0. At block l the sequence is [CLS, P_l, patches]. They get no position
            embedding and enter after `pre_layrnorm`.
        pixel_values: `[B, 3, H, W]`.

    Returns:
        `[B, D]`, after `visual_projection`, not normalised.
    """
    vision = clip.vision_model
    tokens = vision.pre_layrnorm(vision.embeddings(pixel_values))
    first = prompts[0].expand(len(tokens), -1, -1)
    tokens = torch.cat([tokens[:, :1], first, tokens[:, 1:]], dim=1)
    tokens = encode(vision.encoder.layers, prompts, tokens, causal=False)
    return clip.visual_projection(vision.post_layernorm(tokens[:, 0]))


def text_features(clip: CLIPModel, prompts: Tensor, token_ids: list[list[int]], length: int | None = None) -> Tensor:
    """Class features z of one task (paper, section 3.2; CoOp's positions).

    Args:
        prompts: `[depth, n, d_l]`, n may be 0. [SOS] keeps position 0, the first block's prompts get position
            embeddings 1..n, the words move up to 1 + n, 2 + n, ... Later blocks' prompts get no position embedding.
        token_ids: one unpadded list a class, [SOS] and [EOS] included; with -1 where the second half of the prompts
            belongs (CoOp's `middle`; depth 1 alone).
        length: tokens a sequence is padded to, *prompts included*, with the text's last id ([EOS]); by default the
            size of the position table (77). The longest text needs `n + max(map(len, token_ids))`.

    Returns:
        `[C, D]`, after `text_projection`, not normalised.

    Raises:
        ValueError: the longest text does not fit into `length`, or `length` does not fit into the position table.
    """
    if -1 in token_ids[0]:
        return torch.cat([_text_around_its_name(clip, prompts, ids) for ids in token_ids])
    text = clip.text_model
    table = text.embeddings.position_embedding.weight
    count = prompts.shape[1]
    length = len(table) if length is None else length
    longest = count + max(map(len, token_ids))
    if not longest <= length <= len(table):
        raise ValueError(f"`length` must be between {longest} (the longest text) and {len(table)}, got {length}")

    ids = [row + [row[-1]] * (length - count - len(row)) for row in token_ids]
    ids = torch.tensor(ids, device=table.device)
    words = text.embeddings.token_embedding(ids)
    first = prompts[0].expand(len(words), -1, -1)
    tokens = torch.cat([words[:, :1], first, words[:, 1:]], dim=1) + table[:length]
    tokens = text.final_layer_norm(encode(text.encoder.layers, prompts, tokens, causal=True))

    # CLIPTextModel's two conventions; the position found in the ids moves up by the n prompts, as the words do.
    eos_token_id = clip.config.text_config.eos_token_id
    position = ids.argmax(dim=-1) if eos_token_id == 2 else (ids == eos_token_id).int().argmax(dim=-1)
    return clip.text_projection(tokens[torch.arange(len(tokens), device=tokens.device), position + count])


def _text_around_its_name(clip: CLIPModel, prompts: Tensor, ids: list[int]) -> Tensor:
    """`[1, D]` of one text: [SOS], half of the prompts `[1, n, d]`, class name, other half, rest, [EOS], padding."""
    text, half, name = clip.text_model, prompts.shape[1] // 2, ids[1 : ids.index(-1)]
    rest = ids[ids.index(-1) + 1 :]
    table = text.embeddings.position_embedding.weight
    padding = [ids[-1]] * (len(table) - prompts.shape[1] - 1 - len(name) - len(rest))
    start, name, rest, padding = (
        text.embeddings.token_embedding(torch.tensor(part, dtype=torch.long, device=table.device))
        for part in (ids[:1], name, rest, padding)
    )
    (context,) = prompts
    tokens = torch.cat([start, context[:half], name, context[half:], rest, padding]) + table
    tokens = text.final_layer_norm(encode(text.encoder.layers, prompts, tokens[None], causal=True))
    return clip.text_projection(tokens[:, len(table) - len(padding) - 1])


def intervention(
    x: Tensor,
    mask_logits: Tensor,
    inner_down: Tensor,
    inner_down_bias: Tensor,
    inner_up: Tensor,
    inner_up_bias: Tensor,
    outer_down: Tensor,
    outer_down_bias: Tensor,
    outer_up: Tensor,
    outer_up_bias: Tensor,
) -> Tensor:
    """Selected features x̄ of one task, Eq. 2: `x̄ = MLP_2(u + MLP_1(u))` with `u = sigmoid(mask_logits) * x`.

    Each MLP is a residual bottleneck, `MLP_k(a) = a + gelu(a @ down + down_bias) @ up + up_bias`: with zero `up` and
    `mask_logits = 0` (mask 0.5), x̄ = x.

    Args:
        x: `[B, D]`; `mask_logits`: `[D]`; `*_down`: `[D, h]`; `*_down_bias`: `[h]`; `*_up`: `[h, D]`;
        `*_up_bias`: `[D]`.
    """
    selected = torch.sigmoid(mask_logits) * x
    inner = selected + gelu(selected @ inner_down + inner_down_bias) @ inner_up + inner_up_bias
    combined = selected + inner
    return combined + gelu(combined @ outer_down + outer_down_bias) @ outer_up + outer_up_bias


def task_loss(clip: CLIPModel, images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """Task loss, Eq. 3: cross-entropy of `cosine(images, classes) * exp(logit_scale)` over the task's own classes.

    `images` `[B, D]` (x or x̄) and `classes` `[C, D]` need not be normalised; `labels` `[B]` count from 0 in the task.
    """
    cosine = normalize(images, dim=-1) @ normalize(classes, dim=-1).T
    return cross_entropy(cosine * clip.logit_scale.exp(), labels)


def dense_hessian(loss: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """The whole Hessian `[P, P]` of the scalar `loss(vector)` at `vector` `[P]`, its rows in one batched backward."""
    return torch.autograd.functional.hessian(loss, vector.detach(), vectorize=True)


def dense_hypergradient(
    lower_loss: Callable[[Tensor, Tensor], Tensor],
    upper_loss: Callable[[Tensor], Tensor],
    theta: Tensor,
    omega: Tensor,
    damping: float = 0.0,
) -> Tensor:
    """Eq. 10 with everything written out: `-∇_θ L_dev · (∇²_θ L + damping·I)⁻¹ · ∇_Ω ∇_θ L` at (theta, omega).

    Args:
        lower_loss: L(θ, Ω), a scalar; `upper_loss`: L_dev(θ), a scalar.
        theta: `[P]`, exact where it minimises `lower_loss(., omega)`; `omega`: `[Q]`.

    Returns:
        `[Q]`, the gradient of `upper_loss(θ*(Ω))` with respect to Ω.
    """
    theta, omega = theta.detach(), omega.detach()
    upper = torch.autograd.functional.jacobian(upper_loss, theta)
    hessian = dense_hessian(lambda point: lower_loss(point, omega), theta)
    hessian = hessian + damping * torch.eye(len(theta), dtype=theta.dtype, device=theta.device)

    def lower_gradient(omega: Tensor) -> Tensor:
        point = theta.clone().requires_grad_()
        return torch.autograd.grad(lower_loss(point, omega), point, create_graph=True)[0]

    mixed = torch.autograd.functional.jacobian(lower_gradient, omega)
    return -torch.linalg.solve(hessian, upper) @ mixed
