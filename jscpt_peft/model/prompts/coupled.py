"""Vision prompts that are linear maps of the text prompts (MaPLe, CVPR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..start import Start
from .base import PromptSource, shared_tokens
from .concatenated import repeat_to_length


class CoupledPrompts(PromptSource):
    """Text prompts P_l in the first blocks; the vision prompts there are W_l P_l + b_l, one map per block.

    As published: the words of `prompt_init` start the first block's prompts alone; the maps behind the first one start
    alike; the first block's vision prompts pass the image tower's layer norm before the blocks, as its patches do, and
    later ones do not. `prompt_depth=None` prompts as many blocks as the shallower tower has.

    Attributes:
        text: `[depth, n, d_l]`.
        weight, bias: `[depth, d_v, d_l]` and `[depth, d_v]`, of the maps.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        count, depth = shared_tokens(start), min(start.depth("text"), start.depth("vision"))
        inputs, outputs = start.sizes.widths["text"], start.sizes.widths["vision"]
        text = start.normal(start.generator("text"), depth, count, inputs, std=start.config.prompt_init_std)
        if start.prompt_init is not None:
            text[0] = repeat_to_length(start.prompt_init, count)
        self.share("text", text)
        generator, maps = start.generator("maps"), min(depth, 2)
        weight = start.uniform(generator, maps, outputs, inputs, bound=inputs**-0.5)
        bias = start.uniform(generator, maps, outputs, bound=inputs**-0.5)
        which = [min(block, 1) for block in range(depth)]
        self.share("weight", weight[which])
        self.share("bias", bias[which])
        # In a tuple, since it is a part of the base model and not of the adapter.
        self.vision_norm = (start.vision_norm,)

    def forward(self) -> dict[str, Tensor]:
        """Tower -> `[N, depth, n, d]`."""
        each = self.by_task()
        vision = each["text"] @ each["weight"].mT + each["bias"].unsqueeze(-2)
        (norm,) = self.vision_norm
        if norm is not None:
            first = norm(vision[:, :1].to(norm.weight.dtype))
            vision = torch.cat([first.to(vision.dtype), vision[:, 1:]], dim=1)
        prompts = {"vision": vision, "text": each["text"]}
        return {tower: prompt.expand(self.num_tasks, -1, -1, -1) for tower, prompt in prompts.items()}
