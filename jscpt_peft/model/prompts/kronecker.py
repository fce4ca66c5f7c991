"""Prompts of both towers as Kronecker products of one source prompt (MmAP-style; AAAI 2024, arXiv 2312.08636)."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from ..start import Start
from .grouped import GroupedPrompts

WIDTH = 128
TOWERS = ("vision", "text")


class KroneckerPrompts(GroupedPrompts):
    """P_v = F_v ⊗ S and P_l = F_l ⊗ S in every block: a source S `[n, s]` and a factor F `[1, d/s]` per tower.

    The prompts of a group of tasks (`JSCPTConfig.groups`, `num_shared_tokens`) and of the task itself
    (`num_task_tokens`), each with a source and factors of its own, stand side by side. All start as repetitions of
    their source, which is N(0, `prompt_init_std`²). `prompt_depth=None` prompts as many blocks as the shallower tower
    has.

    MmAP's abstract has the source prompt, group-shared and task-specific prompts, and about 0.09 % of the parameters
    trained. Not known here are the shapes of the factors, the depth, and how a group's and a task's prompts come
    together. The simplest reading is taken, hence "-style". The width s is 128, or what of it divides the widths of
    both towers: 16 + 16 tokens of four tasks in one or two groups are then 0.08 or 0.10 % of ViT-B/16.

    Attributes:
        group_source, task_source: `[groups, depth, n, s]` and `[N, depth, n, s]`.
        {group,task}_{vision,text}: `[groups or N, depth, d/s]`, the factors.
    """

    grouping = "group"

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config, widths = start.config, start.sizes.widths
        if config.towers != "both":
            raise ValueError(
                f"`towers` is {config.towers!r}, but prompts='kronecker' has one source for 'both': leave it out."
            )
        width, depth = gcd(WIDTH, *widths.values()), min(map(start.depth, TOWERS))
        generator, counts = start.generator("source"), (self.num_groups, start.num_tasks)
        tokens = config.num_shared_tokens, config.num_task_tokens
        sources = [
            start.normal(generator, count, depth, length, width, std=config.prompt_init_std)
            for count, length in zip(counts, tokens, strict=True)
        ]
        self.add_stacks("source", *sources)
        for tower in TOWERS:
            self.add_stacks(tower, *(start.zeros(count, depth, widths[tower] // width) + 1 for count in counts))

    def forward(self) -> dict[str, Tensor]:
        """Tower -> `[N, depth, n_s + n_t, d]`, the group's tokens first."""
        stacks, prompts = self.tensors(), {}
        for tower in TOWERS:
            own = _kronecker(stacks[f"task_{tower}"], stacks["task_source"])
            if self.single_task:
                prompts[tower] = own
            else:
                group = _kronecker(stacks[f"group_{tower}"], stacks["group_source"])
                prompts[tower] = torch.cat([*self.of_groups(group).unbind(1), own], dim=2)
        return prompts


def _kronecker(factor: Tensor, source: Tensor) -> Tensor:
    """`[..., b]` as one row and `[..., n, s]` -> `[..., n, b·s]`."""
    return (factor[..., None, :, None] * source[..., :, None, :]).flatten(-2)
