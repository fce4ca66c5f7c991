"""A prompt on every node of a tree of tasks (HiPro-style; CVPR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..start import Start
from .concatenated import repeat_to_length
from .grouped import GroupedPrompts


class TreePrompts(GroupedPrompts):
    """P_T = [P^root, ..., P^T]: the prompts on the path to task T, whose own prompt is the leaf.

    `JSCPTConfig.groups` names the nodes above the leaves, from the root on; `num_shared_tokens` are those of each such
    node, `num_task_tokens` those of a leaf. Where a path is shorter than others, its last node stands there more than
    once, so that all tasks have equally many tokens and none is padding; each time counts in attention.

    HiPro's abstract has task-shared prompts on internal nodes, task-individual ones on leaves, and their combination.
    Not known here are how they are combined (read as: side by side, in one pass), the towers and the depth (read as:
    every block of both towers). Hence "-style".

    Attributes:
        group_vision, group_text: `[nodes, depth, n_s, d]`.
        task_vision, task_text: `[N, depth, n_t, d]`.
    """

    grouping = "tree"

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config = start.config
        self.towers = config.prompted_towers
        for tower in self.towers:
            generator, depth, width = start.generator(tower), start.depth(tower), start.sizes.widths[tower]
            shape = self.num_groups, depth, config.num_shared_tokens, width
            nodes = start.normal(generator, *shape, std=config.prompt_init_std)
            if tower == "text" and start.prompt_init is not None:
                nodes = repeat_to_length(start.prompt_init, config.num_shared_tokens).expand(shape).clone()
            shape = start.num_tasks, depth, config.num_task_tokens, width
            self.add_stacks(tower, nodes, start.normal(generator, *shape, std=config.prompt_init_std))

    def forward(self) -> dict[str, Tensor]:
        """Tower -> `[N, depth, path · n_s + n_t, d]`, from the root to the leaf."""
        stacks, prompts = self.tensors(), {}
        for tower in self.towers:
            leaves = stacks[f"task_{tower}"]
            nodes = [] if self.single_task else self.of_groups(stacks[f"group_{tower}"]).unbind(1)
            prompts[tower] = torch.cat([*nodes, leaves], dim=2)
        return prompts
