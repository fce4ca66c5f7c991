"""Class features z of all tasks under their text prompts, kept while nothing that they depend on changes."""

from __future__ import annotations

import torch
from transformers import CLIPModel

from .classifier import ClassTexts
from .fingerprint import Fingerprint


class ClassFeatures:
    """The class texts and class features of the adapters of one model.

    Args:
        clip: the base model with its wrapped towers; the active adapter's classes are meant in every call.
    """

    def __init__(self, clip: CLIPModel) -> None:
        self.clip = clip
        self._texts: dict[str, ClassTexts] = {}
        self._features: dict[str, tuple[tuple, torch.Tensor]] = {}

    def forget(self, adapter_name: str) -> None:
        """The adapter's classes have changed, or it is no more."""
        self._texts.pop(adapter_name, None)
        self._features.pop(adapter_name, None)

    @property
    def texts(self) -> ClassTexts:
        """The texts of all classes, on the model's device."""
        tower, device = self.clip.text_model, self.clip.device
        name = tower.active_name
        if name not in self._texts or self._texts[name].words.device != device:
            eos_token_id = self.clip.config.text_config.eos_token_id
            with torch.inference_mode(False):  # kept for training too, where inference tensors may not take part
                token_ids = tower.active_config.class_token_ids
                self._texts[name] = ClassTexts.from_token_ids(token_ids, eos_token_id, device)
        return self._texts[name]

    def encode(self, texts: ClassTexts, prompts: torch.Tensor) -> torch.Tensor:
        """Class features `[N, C, D]` of some texts under prompts `[N, depth, n, d]`, zero where there is none."""
        return texts.by_task(self._encode(texts, prompts))

    def task_by_task(self, prompts: torch.Tensor) -> torch.Tensor:
        """`encode` of all texts, so that a task's features depend on no other task, not even in their last bits."""
        tasks = torch.arange(len(prompts), device=prompts.device)
        return self.texts.by_task(torch.cat([self._encode(self.texts.of_tasks(task), prompts) for task in tasks]))

    @torch.no_grad()
    def kept(self, prompts: torch.Tensor) -> torch.Tensor:
        """`task_by_task` of the text tower's own prompts, from the last time where nothing has changed since."""
        name = self.clip.text_model.active_name
        key = (self.clip.text_model.enabled, Fingerprint(self.clip.text_model, self.clip.text_projection))
        if name not in self._features or self._features[name][0] != key:
            self._features[name] = key, self.task_by_task(prompts)
        return self._features[name][1]

    def _encode(self, texts: ClassTexts, prompts: torch.Tensor) -> torch.Tensor:
        tower = self.clip.text_model
        pooled = tower.pooled(texts.start_id, texts.words, texts.read_out, texts.task_ids, prompts)
        return self.clip.text_projection(pooled)
