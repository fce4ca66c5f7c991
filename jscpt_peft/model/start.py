"""How the parameters of an adapter begin: sizes, and random numbers that are the same on every process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from peft import PeftConfig
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Sizes of a base model, per tower where a tower is meant (`"vision"` and `"text"`).

    Attributes:
        widths: size of the hidden states.
        blocks: number of transformer blocks.
        projection: D, size of the projected features.
        vocabulary: number of token ids.
        positions: longest text.
        patch: side of an image patch in pixels.
    """

    widths: dict[str, int]
    blocks: dict[str, int]
    projection: int
    vocabulary: int
    positions: int
    patch: int


@dataclass(frozen=True)
class Start:
    """What a part of an adapter needs to make its parameters.

    Attributes:
        config: the adapter's `JSCPTConfig`.
        sizes: of the base model.
        num_tasks: N, or 1 for a task that is added to a trained adapter.
        like: tensor whose device and dtype the parameters take.
        vision_norm: layer norm of the image tower before its first block, `None` where it has none.
        prompt_init: `[k, d]` token embeddings of `JSCPTConfig.prompt_init`, or `None`.
        added_task: name of the task that is added; its random numbers are a function of its name.
    """

    config: PeftConfig
    sizes: Sizes
    num_tasks: int
    like: Tensor
    vision_norm: nn.Module | None = None
    prompt_init: Tensor | None = None
    added_task: str | None = None

    def depth(self, tower: str) -> int:
        """Number of blocks of a tower that get prompts of their own."""
        return self.config.prompt_depth or self.sizes.blocks[tower]

    def generator(self, name: str) -> torch.Generator:
        """Source of the random start of the parameters `name`: another one for every name, added task and seed."""
        salt = name if self.added_task is None else f"{name}/{self.added_task}"
        digest = hashlib.sha256(f"{self.config.init_seed}/{salt}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def tokens(self, tower: str, generator: torch.Generator, *shape: int) -> Tensor:
        """Prompt tokens `[..., d]` of a tower at random, as `prompt_init_std` and `vision_init` say."""
        if tower == "vision" and self.config.vision_init == "uniform":
            bound = (6 / (3 * self.sizes.patch**2 + self.sizes.widths[tower])) ** 0.5
            return self.uniform(generator, *shape, bound=bound)
        return self.normal(generator, *shape, std=self.config.prompt_init_std)

    def normal(self, generator: torch.Generator, *shape: int, std: float) -> Tensor:
        """N(0, std²)."""
        return (std * torch.randn(shape, generator=generator)).to(self.like)

    def uniform(self, generator: torch.Generator, *shape: int, bound: float) -> Tensor:
        """U(-bound, bound); with bound 1/√d the start of torch's linear maps of d inputs."""
        return (bound * (2 * torch.rand(shape, generator=generator) - 1)).to(self.like)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros."""
        return self.like.new_zeros(shape)
