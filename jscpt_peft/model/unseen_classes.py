"""Any class names under a task's prompts, also such as the task was not trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .class_residual import with_residual
from .class_texts import ClassTexts
from .class_tokens import check_lengths, check_token_ids, class_token_ids
from .config_checks import check_class_names
from .losses import task_logits
from .task_context import task_index
from .task_rows import TaskRows

if TYPE_CHECKING:
    from .tuner import JSCPTModel


def unseen_class_embeds(model: JSCPTModel, task: str, class_names: Sequence[str]) -> Tensor:
    """Features `[C, D]` of classes under a task's text prompts, with the task's template or templates.

    Classes that the adapter knows by their names have their residuals, others none.

    Raises:
        ValueError: a name occurs twice or is too long, or no tokenizer is known.
    """
    check_class_names("`classes`", class_names)
    base, config, names = model.model.config, model.active_jscpt_config, list(class_names)
    ids = class_token_ids(config, base, task, names)
    token_ids = {**config.class_token_ids, task: ids}
    changed = replace(config, tasks={**config.tasks, task: names}, class_token_ids=token_ids)
    check_token_ids(changed, base)
    position = model.task_names.index(task)
    prompts = model.prompt_tokens("text")[position, None]
    check_lengths(changed, base, prompts.shape[2])
    texts = ClassTexts.from_token_ids({task: ids}, base.text_config.eos_token_id, model.model.device)
    embeds = texts.by_task(model.backbone.text_features(texts, prompts))[0]
    adapter = model.backbone.vision.active_task_adapter
    if adapter is None or adapter.class_residual is None:
        return embeds
    labels = {name: label for label, name in enumerate(config.tasks[task])}
    return with_residual(embeds, adapter.class_residual.of_names(position, labels, names))


def class_embeds_among(model: JSCPTModel, classes: Mapping[str, Sequence[str]]) -> tuple[Tensor, list[int], Tensor]:
    """Features `[N, C, D]` of the named classes of some tasks, zero for others, and their numbers, for `task_logits`.

    Raises:
        ValueError: the model has no such task; or as `unseen_class_embeds`.
    """
    found = {task_index(task, model.task_names): unseen_class_embeds(model, task, classes[task]) for task in classes}
    counts = [len(found.get(task, ())) for task in range(len(model.task_names))]
    first = next(iter(found.values()))
    embeds = first.new_zeros(len(counts), max(counts), first.shape[-1])
    for task, each in found.items():
        embeds[task, : len(each)] = each
    return embeds, counts, torch.tensor(counts, device=first.device)


def unseen_logits(model: JSCPTModel, embeds: Tensor, class_embeds: Tensor) -> Tensor:
    """Logits `[B, C]` of image features `[B, D]`, x̄, over classes `[C, D]` (Eq. 1)."""
    rows, count = TaskRows.one_task(embeds), len(class_embeds)
    return task_logits(embeds, class_embeds[None], [count], rows.ids.new_tensor([count]), rows, model.backbone.logits)
