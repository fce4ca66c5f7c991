"""The texts of all classes as tensors, ready for a text tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .task_rows import TaskRows

SECOND_HALF = -1
"""Among the token ids of a class text: here stands the second half of the prompts (`class_position="middle"`)."""


class ClassTexts(NamedTuple):
    """The texts of all classes of all tasks, S in all: one per class and template.

    Attributes:
        start_id: id of `[SOS]`.
        words: `[S, W]` ids after `[SOS]`, right-padded with `[EOS]`.
        read_out: `[S]` position of `[EOS]` among the words.
        name_ends: `[S]` number of words before the second half of the prompts; `None`: all prompts precede the words.
        rows: the texts' tasks.
        labels: `[S]` label of each text within its task.
        templates: `[S]` number of texts of each text's class; `None` where every class has one.
        counts: N numbers of classes, known on the host.
        num_classes: `[N]` the same on the device.
    """

    start_id: int
    words: Tensor
    read_out: Tensor
    name_ends: Tensor | None
    rows: TaskRows
    labels: Tensor
    templates: Tensor | None
    counts: tuple[int, ...]
    num_classes: Tensor

    @classmethod
    def from_token_ids(
        cls, class_token_ids: Mapping[str, Sequence], eos_token_id: int, device: torch.device
    ) -> ClassTexts:
        """From unpadded ids per class, or per class and template, `[SOS]` first and `[EOS]` last.

        `SECOND_HALF` is in all of them or in none.
        """
        texts = [
            (task, label, ids)
            for task, classes in enumerate(class_token_ids.values())
            for label, entry in enumerate(classes)
            for ids in texts_of_class(entry)
        ]
        counts = tuple(len(classes) for classes in class_token_ids.values())
        templates = [len(texts_of_class(classes[0])) for classes in class_token_ids.values()]
        words = [without_second_half(ids) for _, _, ids in texts]
        name_ends = [ids.index(SECOND_HALF) - 1 for _, _, ids in texts if SECOND_HALF in ids]
        longest = max(map(len, words))
        padded = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in words])
        return cls(
            start_id=int(padded[0, 0]),
            words=padded[:, 1:].to(device),
            read_out=(read_out_positions(padded, eos_token_id) - 1).to(device),
            name_ends=torch.tensor(name_ends, device=device) if name_ends else None,
            rows=TaskRows.of(torch.tensor([task for task, _, _ in texts], device=device)),
            labels=torch.tensor([label for _, label, _ in texts], device=device),
            templates=None
            if max(templates) == 1
            else torch.tensor([templates[task] for task, _, _ in texts], device=device)[:, None],
            counts=counts,
            num_classes=torch.tensor(counts, device=device),
        )

    def of_tasks(self, tasks: tuple[int, ...]) -> ClassTexts:
        """The texts of some of the tasks; the numbers of classes stay those of all."""
        if tasks == self.rows.tasks:
            return self
        ids = self.rows.ids
        chosen = torch.isin(ids, ids.new_tensor(tasks))
        read_out = self.read_out[chosen]
        return self._replace(
            words=self.words[chosen, : int(read_out.max()) + 1 if len(read_out) else 0],
            read_out=read_out,
            name_ends=None if self.name_ends is None else self.name_ends[chosen],
            rows=TaskRows.of(ids[chosen]),
            labels=self.labels[chosen],
            templates=None if self.templates is None else self.templates[chosen],
        )

    def by_task(self, features: Tensor) -> Tensor:
        """Features `[S, D]` of the texts as those of the classes `[N, C, D]`, zero beyond a task's classes.

        A class with several templates gets the mean of its normalised features, as CLIP's ensembles do.
        """
        shape = len(self.counts), max(self.counts), features.shape[-1]
        at = self.rows.ids, self.labels
        if self.templates is None:
            if shape[:2] == (len(self.rows.tasks), self.rows.each):
                return features.view(shape)
            return features.new_zeros(shape).index_put(at, features)
        mean = F.normalize(features, dim=-1) / self.templates
        features = torch.where(self.templates > 1, mean, features)
        return features.new_zeros(shape).index_put(at, features, accumulate=True)


def texts_of_class(entry: Sequence) -> list[Sequence[int]]:
    """The token ids of each text of a class: of the only one, or of one per template."""
    return [entry] if len(entry) == 0 or isinstance(entry[0], int) else list(entry)


def without_second_half(ids: Sequence[int]) -> list[int]:
    """The token ids of a text without the place of the second half of the prompts."""
    return [each for each in ids if each != SECOND_HALF]


def inserted(words: Tensor, prompts: Tensor, ends: Tensor) -> Tensor:
    """Tokens `[S, W, d]` with further ones `[S, m, d]` after the first `ends` `[S]` of each text: `[S, W + m, d]`."""
    (_, length, width), count = words.shape, prompts.shape[1]
    place, ends = torch.arange(length + count, device=words.device), ends[:, None]
    after = torch.where(place < ends + count, length + place - ends, place - count)
    source = torch.where(place < ends, place, after)
    return torch.cat([words, prompts], dim=1).gather(1, source[..., None].expand(-1, -1, width))


def read_out_positions(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Position `[S]` of `[EOS]` in texts `[S, T]`, by the two conventions of `CLIPTextModel`.

    Configurations written before transformers 4.31 hold `eos_token_id` 2; there the highest id is `[EOS]`.
    """
    if eos_token_id == 2:
        return input_ids.int().argmax(dim=-1)
    return (input_ids == eos_token_id).int().argmax(dim=-1)
