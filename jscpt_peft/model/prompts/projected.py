"""Shared prompts that every task sees through a linear map of its own: P^(k) = W_k P."""

from __future__ import annotations

from torch import Tensor

from ..start import Start
from .base import PromptSource
from .concatenated import start_of_shared


class ProjectedPrompts(PromptSource):
    """P^(k)_l = W_k P_l in every prompted block l, with one map per task and tower: W_k = I + up_k down_k.

    The maps are of low rank beside the identity, "lightweight" as their source has it, and start as the identity:
    every task then sees the shared prompts, and weight decay pulls it back to them.

    Attributes:
        vision_shared, text_shared: `[depth, n, d]`, P.
        vision_down, text_down: `[N, r, d]`; `vision_up`, `text_up`: `[N, d, r]`, zero at the start.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        config, self.towers = start.config, start.config.prompted_towers
        if config.num_task_tokens or not config.num_shared_tokens:
            raise ValueError(
                f"`num_shared_tokens` is {config.num_shared_tokens} and `num_task_tokens` {config.num_task_tokens}, "
                "but prompts='projected' maps shared tokens and takes no others: set them to at least 1 and to 0."
            )
        for tower in self.towers:
            generator, width = start.generator(tower), start.sizes.widths[tower]
            self.share(f"{tower}_shared", start_of_shared(start, tower, generator))
            shape = start.num_tasks, config.projection_rank, width
            self.own(f"{tower}_down", start.uniform(generator, *shape, bound=width**-0.5))
            self.own(f"{tower}_up", start.zeros(start.num_tasks, width, config.projection_rank))

    def forward(self) -> dict[str, Tensor]:
        """Tower -> `[N, depth, n, d]`."""
        each = self.by_task()
        prompts = {}
        for tower in self.towers:
            shared = each[f"{tower}_shared"]
            down, up = (each[f"{tower}_{part}"].unsqueeze(1) for part in ("down", "up"))
            prompts[tower] = shared + shared @ down.mT @ up.mT
        return prompts
