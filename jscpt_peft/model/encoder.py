"""The two prompted towers of `CLIPModel`: the exact fast path of deep prompts, all tasks in one pass.

Compared with concatenating prompts to every sequence: prompts are keys and values only; they depend neither on the
image nor on the class, so they are computed once a task; text is causal, so `[SOS]` is a constant of the frozen model
and a class costs only its own tokens; after the last block only `[CLS]` and `[EOS]` are read, so only they are
computed there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import KeysValues, block, keys_values
from .config import JSCPTConfig
from .fingerprint import Fingerprint
from .layer import JSCPTLayer
from .prompts import PromptBank, repeat_to_length
from .routing import TaskRouter, tasks_in_use


class Start(NamedTuple):
    """`[SOS]` in every block: its keys and values `[1, heads, 1, d / heads]`, and its output `[1, 1, d]`."""

    seen: list[KeysValues]
    output: torch.Tensor


class PromptedTower(JSCPTLayer):
    """A `CLIPTextModel` or `CLIPVisionModel` whose blocks see the active adapter's prompts."""

    adapter_layer_names = ("jscpt_prompts",)
    name: str

    def __init__(self, base_layer: CLIPTextModel | CLIPVisionModel, router: TaskRouter) -> None:
        super().__init__(base_layer, router)
        self.jscpt_prompts = nn.ModuleDict()

    @property
    def blocks(self) -> nn.ModuleList:
        """The frozen transformer blocks."""
        return self.base_layer.encoder.layers

    def update_layer(self, adapter_name: str, config: JSCPTConfig) -> None:
        super().update_layer(adapter_name, config)
        if self.name in config.prompted_towers:
            self.jscpt_prompts[adapter_name] = self._start_bank(config, len(config.tasks), self.name)

    def add_task(self, adapter_name: str, config: JSCPTConfig, init_from: int | None) -> None:
        super().add_task(adapter_name, config, init_from)
        if adapter_name not in self.jscpt_prompts:
            return
        bank = self.jscpt_prompts[adapter_name]
        added = self._start_bank(config, 1, f"{self.name}/{config.task_order[-1]}")
        if init_from is not None:
            added.task = nn.Parameter(bank.tensors()["task"][init_from, None].detach().clone())
        bank.append(added)

    def _start_bank(self, config: JSCPTConfig, num_tasks: int, salt: str) -> PromptBank:
        return PromptBank(
            num_tasks=num_tasks,
            depth=config.prompt_depth or len(self.blocks),
            num_shared_tokens=config.num_shared_tokens,
            num_task_tokens=config.num_task_tokens,
            width=self.base_layer.config.hidden_size,
            std=config.prompt_init_std,
            generator=self.generator(config, salt),
            like=next(self.base_layer.parameters()),
        )

    def prompts(self) -> torch.Tensor:
        """The active adapter's prompts as each task sees them, `[N, depth, n, d]`; n = 0 where there are none."""
        if self.enabled and self.active_name in self.jscpt_prompts:
            return self.jscpt_prompts[self.active_name]()
        shape = len(self.active_config.tasks), len(self.blocks), 0, self.base_layer.config.hidden_size
        return next(self.base_layer.parameters()).new_zeros(shape)

    def _refuse_recording(self, keywords: dict) -> None:
        for name in ("output_hidden_states", "output_attentions"):
            if keywords.get(name):
                raise ValueError(
                    f"`{name}=True` is not available with prompts, which never join the sequence: use "
                    "`disable_adapter()` to inspect the base model."
                )


class PromptedVision(PromptedTower):
    """`CLIPVisionModel` under prompts: `[CLS, P_l, patches]` in block l."""

    name = "vision"

    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        task_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        if not self.enabled:
            return self.base_layer(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        self._refuse_recording(kwargs)
        task_names = list(self.active_config.tasks)
        task_ids = self.router.resolve(task_ids, len(pixel_values), task_names, pixel_values.device)
        self.router.image_task_ids = task_ids
        hidden = self._run(pixel_values, task_ids, self.prompts(), interpolate_pos_encoding, read_out=False)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=self.base_layer.post_layernorm(hidden[:, 0])
        )

    def pooled(self, pixel_values: torch.Tensor, task_ids: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Pooled `[CLS]` outputs `[B, d]` of images `[B, 3, H, W]` of any tasks, computed in one pass.

        Args:
            task_ids: `[B]` rows of `prompts`.
            prompts: `[N, depth, n, d]`.
        """
        hidden = self._run(pixel_values, task_ids, prompts, interpolate_pos_encoding=False, read_out=True)
        return self.base_layer.post_layernorm(hidden[:, 0])

    def _run(
        self,
        pixel_values: torch.Tensor,
        task_ids: torch.Tensor,
        prompts: torch.Tensor,
        interpolate_pos_encoding: bool,
        read_out: bool,
    ) -> torch.Tensor:
        vision, (_, depth, num_prompts, _) = self.base_layer, prompts.shape
        prompts, task_ids = tasks_in_use(prompts, task_ids)
        hidden = vision.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        hidden = vision.pre_layrnorm(hidden)
        cls = task_ids.new_zeros(len(hidden))
        last = len(self.blocks) - 1
        carried = 0
        for index, layer in enumerate(self.blocks):
            prefix = None
            if num_prompts and index < depth:
                block_prompts = prompts[:, index].to(hidden.dtype)
                if index == depth - 1 and index < last:
                    # The last prompts are carried on: from here they are tokens like any other.
                    hidden = torch.cat([hidden[:, :1], block_prompts[task_ids], hidden[:, 1:]], dim=1)
                    carried = num_prompts
                else:
                    prefix = keys_values(layer, block_prompts)
            only = cls if read_out and index == last else None
            hidden = block(layer, hidden, prefix, task_ids, read_out=only)
        if carried and not read_out:
            hidden = torch.cat([hidden[:, :1], hidden[:, 1 + carried :]], dim=1)
        return hidden


class PromptedText(PromptedTower):
    """`CLIPTextModel` under prompts: `[SOS, P_l, words, EOS]` in block l.

    The words move up by the n prompt tokens: `[SOS]` keeps position 0, the first block's prompts get positions
    1..n, the words 1+n, ... (CoOp's convention).
    """

    name = "text"

    def __init__(self, base_layer: CLIPTextModel, router: TaskRouter) -> None:
        super().__init__(base_layer, router)
        self._start_cache: dict[tuple, Start] = {}

    def update_layer(self, adapter_name: str, config: JSCPTConfig) -> None:
        super().update_layer(adapter_name, config)
        if config.prompt_init_token_ids and config.num_shared_tokens and adapter_name in self.jscpt_prompts:
            shared = self.jscpt_prompts[adapter_name].shared
            words = self.base_layer.embeddings.token_embedding.weight[config.prompt_init_token_ids]
            with torch.no_grad():
                shared.copy_(repeat_to_length(words, config.num_shared_tokens).expand_as(shared))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        task_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        if not self.enabled:
            return self.base_layer(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        self._refuse_recording(kwargs)
        if position_ids is not None:
            raise ValueError("`position_ids` must be left out with prompts, which decide where the words stand.")
        # No use for `attention_mask`: text is right-padded and causal, so [EOS] never sees the padding.
        input_ids = input_ids.view(-1, input_ids.shape[-1])
        task_names = list(self.active_config.tasks)
        task_ids = self.router.resolve(task_ids, len(input_ids), task_names, input_ids.device)
        read_out = read_out_positions(input_ids, self.base_layer.eos_token_id)
        input_ids = input_ids[:, : int(read_out.max()) + 1]  # nothing after [EOS] is ever seen
        start_id = int(input_ids[0, 0])
        if not bool((input_ids[:, 0] == start_id).all()):
            raise ValueError("`input_ids` must all start with the same [SOS] token; found several.")
        hidden = self._run(start_id, input_ids[:, 1:], task_ids, self.prompts())
        start = self._start(start_id).output.expand(len(hidden), -1, -1)
        hidden = self.base_layer.final_layer_norm(torch.cat([start, hidden], dim=1))
        rows = torch.arange(len(hidden), device=hidden.device)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[rows, read_out])

    def pooled(
        self,
        start_id: int,
        words: torch.Tensor,
        read_out: torch.Tensor,
        task_ids: torch.Tensor,
        prompts: torch.Tensor,
    ) -> torch.Tensor:
        """Pooled `[EOS]` outputs `[S, d]` of texts of any tasks, computed in one pass.

        Args:
            start_id: id of `[SOS]`.
            words: `[S, W]` ids of what follows `[SOS]`, right-padded.
            read_out: `[S]` positions of `[EOS]` among the words.
            task_ids: `[S]` rows of `prompts`.
            prompts: `[N, depth, n, d]`.
        """
        hidden = self._run(start_id, words, task_ids, prompts, read_out)
        return self.base_layer.final_layer_norm(hidden[:, 0])

    def _run(
        self,
        start_id: int,
        words: torch.Tensor,
        task_ids: torch.Tensor,
        prompts: torch.Tensor,
        read_out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Outputs of the words `[S, W, d]`, or of the read-out position alone `[S, 1, d]`."""
        prompts, task_ids = tasks_in_use(prompts, task_ids)
        num_tasks, depth, num_prompts, _ = prompts.shape
        start = self._start(start_id).seen
        hidden = self._embed(words, first_position=1 + num_prompts)
        causal = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).tril()
        mask = torch.cat([causal.new_ones(words.shape[1], 1 + num_prompts), causal], dim=1)
        prompt_mask = causal.new_ones(num_prompts, 1 + num_prompts).tril(1)  # [SOS], earlier prompts, itself
        every_task = task_ids.new_zeros(num_tasks)
        last = len(self.blocks) - 1
        for index, layer in enumerate(self.blocks):
            prefix = KeysValues(*(part.expand(num_tasks, -1, -1, -1) for part in start[index]))
            if num_prompts:
                if index < depth:
                    tokens = prompts[:, index].to(hidden.dtype)
                    if index == 0:
                        tokens = tokens + self._positions(1, num_prompts)
                prefix = prefix.before(keys_values(layer, tokens))
                if depth - 1 <= index < last:
                    # The last prompts are carried on; they see no class, so once a task is enough.
                    tokens = block(layer, tokens, start[index], every_task, prompt_mask)
            if read_out is not None and index == last:
                hidden = block(layer, hidden, prefix, task_ids, mask[read_out][:, None, None], read_out)
            else:
                hidden = block(layer, hidden, prefix, task_ids, mask)
        return hidden

    def _embed(self, token_ids: torch.Tensor, first_position: int) -> torch.Tensor:
        return self.base_layer.embeddings.token_embedding(token_ids) + self._positions(
            first_position, token_ids.shape[1]
        )

    def _positions(self, first: int, count: int) -> torch.Tensor:
        table = self.base_layer.embeddings.position_embedding.weight
        if first + count > len(table):
            raise ValueError(
                f"a text of {count} tokens behind {first} others needs {first + count} positions, but the base model "
                f"has {len(table)}: shorten the text or use fewer prompt tokens."
            )
        return table[first : first + count]

    @torch.no_grad()
    def _start(self, start_id: int) -> Start:
        """What `[SOS]`, which sees only itself, contributes: constants of the frozen model."""
        key = (start_id, Fingerprint(self.base_layer))
        if key not in self._start_cache:
            hidden = self._embed(self.base_layer.embeddings.position_ids.new_full((1, 1), start_id), first_position=0)
            seen = []
            for layer in self.blocks:
                seen.append(keys_values(layer, hidden))
                hidden = block(layer, hidden)
            self._start_cache = {key: Start(seen, hidden)}  # only the latest is worth its memory
        return self._start_cache[key]


def read_out_positions(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Position `[S]` of `[EOS]` in texts `[S, T]`, by the two conventions of `CLIPTextModel`.

    Configurations written before transformers 4.31 hold `eos_token_id` 2; there the highest id is `[EOS]`.
    """
    if eos_token_id == 2:
        return input_ids.int().argmax(dim=-1)
    return (input_ids == eos_token_id).int().argmax(dim=-1)
