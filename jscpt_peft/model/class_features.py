"""Class features z of all tasks under their text prompts, kept while nothing that they depend on changes."""

from __future__ import annotations

import torch
from torch import Tensor

from .backbones import Backbone
from .backbones.double_backward import precision_mode
from .cache import Cache, CacheKey
from .class_texts import ClassTexts
from .task_context import deterministic


class ClassFeatures:
    """The class texts and class features of the adapters of one model.

    Args:
        backbone: the base model with its wrapped towers; the active adapter's classes are meant in every call.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._texts: dict[str, ClassTexts] = {}
        self._features = Cache()

    def forget(self, adapter_name: str) -> None:
        """The adapter's classes have changed, or it is no more."""
        self._texts.pop(adapter_name, None)
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

    def __call__(self, prompts: Tensor, learning: bool, task_ids: Tensor | None = None) -> Tensor:
        """Class features `[N, C, D]`, zero beyond a task's classes.

        Args:
            prompts: `[N, depth, n, d]` text prompts of all tasks.
            learning: the prompts are given, or gradients with respect to them are wanted: all texts in one pass.
                Otherwise they are the adapter's own, and a task's features depend on no other task, not even in their
                last bits; without gradients they are kept.
            task_ids: where learning, spend nothing on other tasks' classes, whose features are zero then.
        """
        if prompts.shape[2] == 0:  # constants of the frozen model
            return self._kept(prompts)
        if learning:
            texts = self.texts if task_ids is None else self.texts.of_tasks(task_ids)
            return texts.by_task(self.backbone.text_features(texts, prompts))
        return self._task_by_task(prompts) if prompts.requires_grad else self._kept(prompts)

    def _task_by_task(self, prompts: Tensor) -> Tensor:
        tasks = torch.arange(len(prompts), device=prompts.device)
        each = [self.backbone.text_features(self.texts.of_tasks(task), prompts) for task in tasks]
        return self.texts.by_task(torch.cat(each))

    @torch.no_grad()
    def _kept(self, prompts: Tensor) -> Tensor:
        """`_task_by_task`, without dropout, from the last time where nothing has changed since."""
        tower = self.backbone.text
        adapter = tower.active_task_adapter
        modules = [*self.backbone.text_modules(), *([] if adapter is None else [adapter.prompts])]
        mode = tower.active_name, adapter is None, precision_mode(prompts.device.type)
        with deterministic():
            return self._features.get(mode, CacheKey(modules), lambda: self._task_by_task(prompts))
