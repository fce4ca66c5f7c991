"""CLIP's text tower under prompts: the exact fast path of deep prompts, the texts of all tasks in one pass.

Text is causal, so `[SOS]` is a constant of the frozen model, and prompts depend on nothing but the task: a class costs
its own tokens alone. After the last block only `[EOS]` is read, so only it is computed there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..cache import CacheKey
from ..class_texts import ClassTexts, inserted, read_out_positions
from ..task_context import deterministic
from ..task_rows import TaskRows
from .attention import KeysValues, block, keys_values
from .base import PromptedTower
from .double_backward import precision_mode


class StartOfText(NamedTuple):
    """`[SOS]` in every block: its keys and values `[1, heads, 1, d / heads]`, and its output `[1, 1, d]`."""

    seen: list[KeysValues]
    output: Tensor


class PromptedCLIPText(PromptedTower):
    """`CLIPTextModel` under prompts: `[SOS, P_l, words, EOS]` in block l.

    The words move up by the n prompt tokens: `[SOS]` keeps position 0, the first block's prompts get positions
    1..n, the words 1+n, ... (CoOp's convention). With `class_position="middle"` the second half of the prompts are
    ordinary tokens of every text, behind the class name; then only the first block has prompts of its own.
    """

    name = "text"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        if not self.enabled:
            return self.base_layer(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        self.refuse_recording(kwargs)
        if position_ids is not None:
            raise ValueError("`position_ids` must be left out with prompts, which decide where the words stand.")
        if self.active_config.class_position == "middle":
            raise ValueError(
                "`input_ids` do not tell where the class name ends, behind which class_position='middle' puts half of "
                "the prompts: use `classify`, `predict` or `class_embeds`, which know the texts of the classes."
            )
        # No use for `attention_mask`: text is right-padded and causal, so [EOS] never sees the padding.
        input_ids = input_ids.view(-1, input_ids.shape[-1])
        rows = self.resolve(task_ids, input_ids)
        read_out = read_out_positions(input_ids, self.base_layer.eos_token_id)
        input_ids = input_ids[:, : int(read_out.max()) + 1]  # nothing after [EOS] is ever seen
        start_id = int(input_ids[0, 0])
        if not bool((input_ids[:, 0] == start_id).all()):
            raise ValueError("`input_ids` must all start with the same [SOS] token; found several.")
        hidden = self._run(start_id, self._words(input_ids[:, 1:]), rows, self.prompts())
        start = self._start(start_id).output.expand(len(hidden), -1, -1)
        hidden = self.base_layer.final_layer_norm(torch.cat([start, hidden], dim=1))
        every = torch.arange(len(hidden), device=hidden.device)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[every, read_out])

    def pooled(self, texts: ClassTexts, prompts: Tensor) -> Tensor:
        """Pooled `[EOS]` outputs `[S, d]` of texts of any tasks, computed in one pass.

        Args:
            texts: what is read.
            prompts: `[N, depth, n, d]`.
        """
        words, read_out = self._words(texts.words), texts.read_out
        if texts.name_ends is not None:
            prompts, second = prompts.tensor_split([prompts.shape[2] // 2], dim=2)
            second = texts.rows.spread(texts.rows.choose(second)[:, 0]).to(words.dtype)
            words, read_out = inserted(words, second, texts.name_ends), read_out + second.shape[1]
        hidden = self._run(texts.start_id, words, texts.rows, prompts, read_out)
        return self.base_layer.final_layer_norm(hidden[:, 0])

    def _run(
        self,
        start_id: int,
        words: Tensor,
        rows: TaskRows,
        prompts: Tensor,
        read_out: Tensor | None = None,
    ) -> Tensor:
        """Outputs of words `[S, W, d]`, given without positions, or of the read-out position alone `[S, 1, d]`."""
        every_task = TaskRows.one_task(prompts := rows.choose(prompts))
        num_tasks, depth, num_prompts, _ = prompts.shape
        prompts, cast = prompts.unbind(1), self.cast_blocks()
        start = self._start(start_id).seen
        hidden = words + self._positions(1 + num_prompts, words.shape[1])
        causal = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).tril()
        mask = torch.cat([causal.new_ones(words.shape[1], 1 + num_prompts), causal], dim=1)
        prompt_mask = causal.new_ones(num_prompts, 1 + num_prompts).tril(1)  # [SOS], earlier prompts, itself
        last = len(self.blocks) - 1
        for index, layer in enumerate(self.blocks):
            prefix = KeysValues(*(part.expand(num_tasks, -1, -1, -1) for part in start[index]))
            if num_prompts:
                if index < depth:
                    tokens = prompts[index].to(hidden.dtype)
                    if index == 0:
                        tokens = tokens + self._positions(1, num_prompts)
                prefix = prefix.before(keys_values(layer, tokens, cast[index]))
                if depth - 1 <= index < last:
                    # The last prompts are carried on; they see no class, so once a task is enough.
                    tokens = block(layer, tokens, start[index], every_task, prompt_mask, cast=cast[index])
            if read_out is not None and index == last:
                hidden = block(layer, hidden, prefix, rows, mask[read_out][:, None, None], read_out, cast[index])
            else:
                hidden = block(layer, hidden, prefix, rows, mask, cast=cast[index])
        return hidden

    def _words(self, token_ids: Tensor) -> Tensor:
        return self.base_layer.embeddings.token_embedding(token_ids)

    def _positions(self, first: int, count: int) -> Tensor:
        table = self.base_layer.embeddings.position_embedding.weight
        if first + count > len(table):
            raise ValueError(
                f"a text of {count} tokens behind {first} others needs {first + count} positions, but the base model "
                f"has {len(table)}: shorten the text or use fewer prompt tokens."
            )
        return table[first : first + count]

    def _start(self, start_id: int) -> StartOfText:
        """What `[SOS]`, which sees only itself, contributes: constants of the frozen model."""
        mode = start_id, precision_mode(self.base_layer.device.type)
        return self._kept.get(mode, lambda: CacheKey([self.base_layer]), lambda: self._make_start(start_id), hold=True)

    @torch.no_grad()
    def _make_start(self, start_id: int) -> StartOfText:
        start = self.base_layer.embeddings.position_ids.new_full((1, 1), start_id)
        hidden = self._words(start) + self._positions(0, 1)
        seen = []
        with deterministic():
            for layer in self.blocks:
                seen.append(keys_values(layer, hidden))
                hidden = block(layer, hidden)
        return StartOfText(seen, hidden)
