"""CLIP's image tower under prompts: the exact fast path of deep prompts, the images of all tasks in one pass.

Compared with concatenating prompts to every sequence: prompts are keys and values only; they do not depend on the
image, so they are computed once per task; after the last block only `[CLS]` is read, so only it is computed there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..layer import AdapterHolder
from ..task_features import with_task_ids
from ..task_rows import TaskRows
from .attention import block, keys_values
from .base import PromptedTower


class PromptedCLIPVision(PromptedTower, AdapterHolder):
    """`CLIPVisionModel` under prompts: `[CLS, P_l, patches]` in block l."""

    name = "vision"

    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        task_ids: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        if not self.enabled:
            return self.base_layer(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        self.refuse_recording(kwargs)
        rows = self.resolve(task_ids, pixel_values)
        hidden = self._run(pixel_values, rows, self.prompts(), interpolate_pos_encoding, read_out=False)
        pooled = self.base_layer.post_layernorm(hidden[:, 0])
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=with_task_ids(pooled, rows.ids))

    def pooled(self, pixel_values: Tensor, rows: TaskRows, prompts: Tensor) -> Tensor:
        """Pooled `[CLS]` outputs `[B, d]` of images `[B, 3, H, W]` of any tasks, computed in one pass.

        Args:
            rows: the images' tasks.
            prompts: `[N, depth, n, d]`.
        """
        hidden = self._run(pixel_values, rows, prompts, interpolate_pos_encoding=False, read_out=True)
        return self.base_layer.post_layernorm(hidden[:, 0])

    def _run(
        self,
        pixel_values: Tensor,
        rows: TaskRows,
        prompts: Tensor,
        interpolate_pos_encoding: bool,
        read_out: bool,
    ) -> Tensor:
        vision, (_, depth, num_prompts, _) = self.base_layer, prompts.shape
        prompts, cast = rows.choose(prompts).unbind(1), self.cast_blocks()  # one by one, each slice would cost zeros
        hidden = vision.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        hidden = vision.pre_layrnorm(hidden)
        last = len(self.blocks) - 1
        carried = 0
        for index, layer in enumerate(self.blocks):
            prefix = None
            if num_prompts and index < depth:
                block_prompts = prompts[index].to(hidden.dtype)
                if index == depth - 1 and index < last:
                    # The last prompts are carried on: from here they are tokens like any other.
                    hidden = torch.cat([hidden[:, :1], rows.spread(block_prompts), hidden[:, 1:]], dim=1)
                    carried = num_prompts
                else:
                    prefix = keys_values(layer, block_prompts, cast[index])
            only = 0 if read_out and index == last else None
            hidden = block(layer, hidden, prefix, rows, read_out=only, cast=cast[index])
        if carried and not read_out:
            hidden = torch.cat([hidden[:, :1], hidden[:, 1 + carried :]], dim=1)
        return hidden
