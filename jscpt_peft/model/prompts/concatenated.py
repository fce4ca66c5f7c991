"""Task-shared and task-specific deep prompts side by side (paper, section 3.2); with one of the two, CoOp and VPT."""

from __future__ import annotations

import torch
from torch import Tensor

from ..start import Start
from .base import PromptSource


class ConcatenatedPrompts(PromptSource):
    """P_T = [P^sh, P^sp_T] in every prompted block of every prompted tower.

    Attributes:
        vision_shared, text_shared: `[depth, n_s, d]`, where there are shared tokens.
        vision_task, text_task: `[N, depth, n_t, d]`, where there are tokens of the tasks' own.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config = start.config
        self.num_shared_tokens = config.num_shared_tokens
        self.towers = config.prompted_towers
        for tower in self.towers:
            generator = start.generator(tower)
            if config.num_shared_tokens:
                self.share(f"{tower}_shared", start_of_shared(start, tower, generator))
            if config.num_task_tokens:
                shape = start.num_tasks, start.depth(tower), config.num_task_tokens, start.sizes.widths[tower]
                self.own(f"{tower}_task", start.tokens(tower, generator, *shape))

    def forward(self) -> dict[str, Tensor]:
        """Tower -> `[N, depth, n_s + n_t, d]`, shared tokens first."""
        tensors = self.by_task()
        prompts = {}
        for tower in self.towers:
            shared, own = tensors.get(f"{tower}_shared"), tensors.get(f"{tower}_task")
            parts = [] if shared is None else [shared.expand(self.num_tasks, -1, -1, -1)]
            prompts[tower] = torch.cat(parts if own is None else [*parts, own], dim=2)
        return prompts

    def shared_gradients(self, prompts: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
        """As the base's, which here are slices of the gradients."""
        first = next(iter(gradients.values()))
        count = 0 if self.single_task else self.num_shared_tokens
        slices = [gradients[tower][:, :, :count].flatten(1) for tower in prompts]
        return torch.cat([first.new_zeros(len(first), 0), *slices], dim=1)


def start_of_shared(start: Start, tower: str, generator: torch.Generator) -> Tensor:
    """Shared prompts `[depth, n_s, d]` at their start: random, or for text the words of `prompt_init` per block."""
    shape = start.depth(tower), start.config.num_shared_tokens, start.sizes.widths[tower]
    shared = start.tokens(tower, generator, *shape)
    if tower == "text" and start.prompt_init is not None:
        return repeat_to_length(start.prompt_init, start.config.num_shared_tokens).expand(shape).clone()
    return shared


def repeat_to_length(embeddings: Tensor, length: int) -> Tensor:
    """Token embeddings `[k, d]` repeated and cut to `[length, d]`: the words that start the shared text prompts."""
    repeats = -(-length // len(embeddings))
    return embeddings.repeat(repeats, 1)[:length]
