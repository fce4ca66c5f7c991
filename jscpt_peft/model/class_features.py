"""Class features z of all tasks under their text prompts, kept while nothing that they depend on changes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .backbones import Backbone
from .backbones.double_backward import precision_mode
from .cache import Cache, CacheKey
from .class_texts import ClassTexts
from .task_context import deterministic

MOST_PARTS = 256
MOST_TEXTS = 1 << 14  # of one pass where activations are checkpointed


class ClassFeatures:
    """The class texts and class features of the adapters of one model.

    Args:
        backbone: the base model with its wrapped towers; the active adapter's classes are meant in every call.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._texts: dict[str, ClassTexts] = {}
        self._parts: dict[tuple[int, ...], ClassTexts] = {}  # of some tasks of the texts that were asked for last
        self._features = Cache()

    def forget(self, adapter_name: str) -> None:
        """The adapter's classes have changed, or it is no more."""
        self._texts.pop(adapter_name, None)
        self._parts.clear()
        self._features = Cache()

    @property
    def texts(self) -> ClassTexts:
        """The texts of all classes, on the model's device."""
        tower, device = self.backbone.text, self.backbone.model.device
        texts = self._texts.get(tower.active_name)
        if texts is None or texts.words.device != device:
            eos_token_id = self.backbone.model.config.text_config.eos_token_id
            with torch.inference_mode(False):  # kept for training too, where inference tensors may not take part
                texts = ClassTexts.from_token_ids(tower.active_config.class_token_ids, eos_token_id, device)
            self._texts[tower.active_name] = texts
        return texts

    def of_tasks(self, tasks: tuple[int, ...]) -> ClassTexts:
        """The texts of some tasks; kept, since choosing them waits for the device."""
        whole = self.texts
        part = self._parts.get(tasks)
        if part is None or part.num_classes is not whole.num_classes:
            if len(self._parts) >= MOST_PARTS:
                self._parts.clear()
            part = self._parts[tasks] = whole.of_tasks(tasks)
        return part

    def __call__(self, prompts: Tensor, learning: bool, tasks: tuple[int, ...] | None = None) -> Tensor:
        """Class features `[N, C, D]`, zero beyond a task's classes.

        Args:
            prompts: `[N, depth, n, d]` text prompts of all tasks.
            learning: the prompts are given, or gradients with respect to them are wanted: all texts in one pass, or
                where activations are checkpointed and texts are many, a pass for each task, made anew in the backward.
                Otherwise they are the adapter's own, and a task's features depend on no other task, not even in their
                last bits; without gradients they are kept.
            tasks: where learning, spend nothing on other tasks' classes, whose features are zero then.
        """
        if prompts.shape[2] == 0:  # constants of the frozen model
            return self._kept(prompts, hold=True)
        if learning:
            texts = self.texts if tasks is None else self.of_tasks(tasks)
            if len(texts.labels) <= MOST_TEXTS or not self.backbone.text.is_checkpointed:
                return texts.by_task(self.backbone.text_features(texts, prompts))
            parts = [self.of_tasks((task,)) for task in texts.rows.tasks]
            features = self.backbone.text_features
            return texts.by_task(
                torch.cat([checkpoint(features, each, prompts, use_reentrant=False) for each in parts])
            )
        return self._task_by_task(prompts) if prompts.requires_grad else self._kept(prompts)

    def _task_by_task(self, prompts: Tensor) -> Tensor:
        texts = self.texts
        each = [self.backbone.text_features(texts.of_tasks((task,)), prompts) for task in range(len(prompts))]
        return texts.by_task(torch.cat(each))

    @torch.no_grad()
    def _kept(self, prompts: Tensor, hold: bool = False) -> Tensor:
        """`_task_by_task`, without dropout, from the last time where nothing has changed since."""
        tower = self.backbone.text
        adapter = tower.active_task_adapter

        def key() -> CacheKey:
            return CacheKey([*self.backbone.text_modules(), *([] if adapter is None else [adapter.prompts])])

        mode = tower.active_name, adapter is None, precision_mode(prompts.device.type)
        with deterministic():
            return self._features.get(mode, key, lambda: self._task_by_task(prompts), hold)
