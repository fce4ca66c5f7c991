"""Prompts of both towers that a small transformer block couples (UPT, arXiv 2210.07225; MVLPT, WACV 2024)."""

from __future__ import annotations

from torch import Tensor, cat
from torch.nn import functional as F

from ..start import Start
from .base import PromptSource, shared_tokens

WIDTH = 128
QUICK_GELU_SLOPE = 1.702


class UnifiedPrompts(PromptSource):
    """n text tokens for the first block and n vision tokens per block, as one sequence through one transformer block.

    The block is CLIP's, of width 128 with one head: a linear map per tower leads into it and another one out of it.
    MVLPT shares these prompts among all tasks.

    As the publications describe it, every token of the sequence attends to all others. (MVLPT's code hands
    `[1, tokens, 128]` to CLIP's block, which takes the first dimension for the sequence: there a token sees itself
    alone.) As in that code, `class_position="middle"` is part of its original hyperparameters.

    Attributes:
        text, vision: `[n, d_l]` and `[depth, n, d_v]` tokens before the block.
        {text,vision}_{in,out}_{weight,bias}: the maps; the others are the block's.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        count = shared_tokens(start)
        for tower, shape in {"text": (count,), "vision": (start.depth("vision"), count)}.items():
            width, generator = start.sizes.widths[tower], start.generator(tower)
            self.share(tower, start.tokens(tower, generator, *shape, width))
            self._linear(start, f"{tower}_in", width, WIDTH)
            self._linear(start, f"{tower}_out", WIDTH, width)
        # Inside torch's attention, maps start as one map of their joint size would, and biases at zero.
        bound = (6 / (WIDTH + 3 * WIDTH)) ** 0.5
        self.share("attention_weight", start.uniform(start.generator("attention"), 3 * WIDTH, WIDTH, bound=bound))
        self.share("attention_bias", start.zeros(3 * WIDTH))
        self._linear(start, "attended", WIDTH, WIDTH, zero_bias=True)
        self._linear(start, "wide", WIDTH, 4 * WIDTH)
        self._linear(start, "narrow", 4 * WIDTH, WIDTH)
        for norm in ("norm1", "norm2"):
            self.share(f"{norm}_weight", start.zeros(WIDTH) + 1)
            self.share(f"{norm}_bias", start.zeros(WIDTH))

    def _linear(self, start: Start, name: str, inputs: int, outputs: int, zero_bias: bool = False) -> None:
        generator, bound = start.generator(name), inputs**-0.5
        self.share(f"{name}_weight", start.uniform(generator, outputs, inputs, bound=bound))
        bias = start.zeros(outputs) if zero_bias else start.uniform(generator, outputs, bound=bound)
        self.share(f"{name}_bias", bias)

    def forward(self) -> dict[str, Tensor]:
        """`[N, 1, n, d_l]` text and `[N, depth, n, d_v]` vision prompts."""
        each = self.by_task()  # everything here is [1 or N, tokens, width]
        text, vision = each["text"], each["vision"].flatten(1, 2)
        length, (depth, count) = text.shape[1], each["vision"].shape[1:3]
        hidden = _block(cat([_map(text, each, "text_in"), _map(vision, each, "vision_in")], dim=1), each)
        prompts = {
            "vision": _map(hidden[:, length:], each, "vision_out").unflatten(1, (depth, count)),
            "text": _map(hidden[:, :length], each, "text_out").unsqueeze(1),
        }
        return {tower: prompt.expand(self.num_tasks, -1, -1, -1) for tower, prompt in prompts.items()}


def _block(hidden: Tensor, each: dict[str, Tensor]) -> Tensor:
    queries, keys, values = _map(_norm(hidden, each, "norm1"), each, "attention").chunk(3, dim=-1)
    seen = (queries @ keys.mT * WIDTH**-0.5).softmax(-1) @ values
    hidden = hidden + _map(seen, each, "attended")
    wide = _map(_norm(hidden, each, "norm2"), each, "wide")
    return hidden + _map(wide * (QUICK_GELU_SLOPE * wide).sigmoid(), each, "narrow")


def _map(tokens: Tensor, each: dict[str, Tensor], name: str) -> Tensor:
    return tokens @ each[f"{name}_weight"].mT + each[f"{name}_bias"].unsqueeze(-2)


def _norm(tokens: Tensor, each: dict[str, Tensor], name: str) -> Tensor:
    normed = F.layer_norm(tokens, tokens.shape[-1:])
    return normed * each[f"{name}_weight"].unsqueeze(-2) + each[f"{name}_bias"].unsqueeze(-2)
