"""The texts of all classes as tensors, ready for a text tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ClassTexts(NamedTuple):
    """The texts of all classes of all tasks, S in all: one per class and template.

    Attributes:
        start_id: id of `[SOS]`.
        words: `[S, W]` ids after `[SOS]`, right-padded with `[EOS]`.
        read_out: `[S]` position of `[EOS]` among the words.
        task_ids: `[S]` task of each text.
        labels: `[S]` label of each text within its task.
        num_classes: `[N]` number of classes of each task.
        templates: `[N]` number of templates of each task.
    """

    start_id: int
    words: Tensor
    read_out: Tensor
    task_ids: Tensor
    labels: Tensor
    num_classes: Tensor
    templates: tuple[int, ...]

    @classmethod
    def from_token_ids(
        cls, class_token_ids: Mapping[str, Sequence], eos_token_id: int, device: torch.device
    ) -> ClassTexts:
        """From unpadded ids per class, or per class and template, `[SOS]` first and `[EOS]` last."""
        texts = [
            (task, label, ids)
            for task, classes in enumerate(class_token_ids.values())
            for label, entry in enumerate(classes)
            for ids in texts_of_class(entry)
        ]
        longest = max(len(ids) for _, _, ids in texts)
        padded = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for _, _, ids in texts])
        return cls(
            start_id=int(padded[0, 0]),
            words=padded[:, 1:].to(device),
            read_out=(read_out_positions(padded, eos_token_id) - 1).to(device),
            task_ids=torch.tensor([task for task, _, _ in texts], device=device),
            labels=torch.tensor([label for _, label, _ in texts], device=device),
            num_classes=torch.tensor([len(classes) for classes in class_token_ids.values()], device=device),
            templates=tuple(len(texts_of_class(classes[0])) for classes in class_token_ids.values()),
        )

    def of_tasks(self, tasks: Tensor) -> ClassTexts:
        """The texts of some of the tasks, `tasks` their ids; `num_classes` and `templates` stay those of all."""
        chosen = torch.isin(self.task_ids, tasks)
        read_out = self.read_out[chosen]
        return self._replace(
            words=self.words[chosen, : int(read_out.max()) + 1 if len(read_out) else 0],
            read_out=read_out,
            task_ids=self.task_ids[chosen],
            labels=self.labels[chosen],
        )

    def by_task(self, features: Tensor) -> Tensor:
        """Features `[S, D]` of the texts as those of the classes `[N, C, D]`, zero beyond a task's classes.

        A class with several templates gets the mean of its normalised features, as CLIP's ensembles do.
        """
        shape = len(self.num_classes), int(self.num_classes.max()), features.shape[-1]
        at = self.task_ids, self.labels
        if max(self.templates) == 1:
            return features.new_zeros(shape).index_put(at, features)
        counts = torch.tensor(self.templates, device=features.device)[self.task_ids, None]
        features = torch.where(counts > 1, F.normalize(features, dim=-1) / counts, features)
        return features.new_zeros(shape).index_put(at, features, accumulate=True)


def texts_of_class(entry: Sequence) -> list[Sequence[int]]:
    """The token ids of each text of a class: of the only one, or of one per template."""
    return [entry] if len(entry) == 0 or isinstance(entry[0], int) else list(entry)


def read_out_positions(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Position `[S]` of `[EOS]` in texts `[S, T]`, by the two conventions of `CLIPTextModel`.

    Configurations written before transformers 4.31 hold `eos_token_id` 2; there the highest id is `[EOS]`.
    """
    if eos_token_id == 2:
        return input_ids.int().argmax(dim=-1)
    return (input_ids == eos_token_id).int().argmax(dim=-1)
