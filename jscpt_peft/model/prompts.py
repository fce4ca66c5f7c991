"""The prompt bank of a tower: task-shared and task-specific deep prompts (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn

from .task_stack import TaskStack


class PromptBank(TaskStack):
    """Learnable prompt tokens of one tower.

    Args:
        num_tasks: N.
        depth: number of prompted blocks.
        num_shared_tokens: n_s, tokens that all tasks share; 0 for none.
        num_task_tokens: n_t, tokens of each task's own; 0 for none.
        width: d, the tower's hidden size.
        std: standard deviation of the start, N(0, std²).
        generator: source of the random start, so that every process starts alike.
        like: tensor whose device and dtype the tokens take.

    Attributes:
        shared: `[depth, n_s, d]` or `None`.
        task: `[N, depth, n_t, d]` or `None`.
    """

    def __init__(
        self,
        num_tasks: int,
        depth: int,
        num_shared_tokens: int,
        num_task_tokens: int,
        width: int,
        std: float,
        generator: torch.Generator,
        like: torch.Tensor,
    ) -> None:
        super().__init__(num_tasks, stacked=("task",) if num_task_tokens else ())

        def start(*shape: int) -> nn.Parameter:
            return nn.Parameter((std * torch.randn(shape, generator=generator)).to(like))

        self.shared = start(depth, num_shared_tokens, width) if num_shared_tokens else None
        self.task = start(num_tasks, depth, num_task_tokens, width) if num_task_tokens else None

    def forward(self) -> torch.Tensor:
        """`[N, depth, n_s + n_t, d]`: what each task sees, shared tokens first (P_T = [P^sh, P^sp_T])."""
        parts = []
        if self.shared is not None:
            parts.append(self.shared.expand(self.num_tasks, -1, -1, -1))
        if self.task is not None:
            parts.append(self.tensors()["task"])
        return torch.cat(parts, dim=2)


def repeat_to_length(embeddings: torch.Tensor, length: int) -> torch.Tensor:
    """Token embeddings `[k, d]` repeated and cut to `[length, d]`: the words that start the shared text prompts."""
    repeats = -(-length // len(embeddings))
    return embeddings.repeat(repeats, 1)[:length]
