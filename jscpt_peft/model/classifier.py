"""From features to predictions: class texts, task logits (Eq. 1) and task losses (Eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .encoder import read_out_positions
from .routing import tasks_in_use


@dataclass
class JSCPTOutput(ModelOutput):
    """Output of `classify`; N tasks, B images, C the largest number of classes of a task, D the projection size.

    Args:
        loss: mean of the losses of the tasks present; `None` without labels.
        task_losses: `[N]` mean loss of each task's images (Eq. 3), nan where a task is absent; `None` without labels.
        logits: `[B, C]`, -inf beyond the classes of a sample's task.
        image_embeds: `[B, D]` x, not normalised.
        selected_embeds: `[B, D]` x̄ (Eq. 2), not normalised.
        class_embeds: `[N, C, D]` z, not normalised; zero beyond a task's classes.
    """

    loss: torch.Tensor | None = None
    task_losses: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    selected_embeds: torch.Tensor | None = None
    class_embeds: torch.Tensor | None = None


class ClassTexts(NamedTuple):
    """The texts of all classes of all tasks, S in all, ready for the text tower.

    Attributes:
        start_id: id of `[SOS]`.
        words: `[S, W]` ids after `[SOS]`, right-padded with `[EOS]`.
        read_out: `[S]` position of `[EOS]` among the words.
        task_ids: `[S]` task of each text.
        labels: `[S]` label of each text within its task.
        num_classes: `[N]` number of classes of each task.
    """

    start_id: int
    words: torch.Tensor
    read_out: torch.Tensor
    task_ids: torch.Tensor
    labels: torch.Tensor
    num_classes: torch.Tensor

    @classmethod
    def from_token_ids(
        cls, class_token_ids: dict[str, list[list[int]]], eos_token_id: int, device: torch.device
    ) -> ClassTexts:
        """From unpadded ids a class, `[SOS]` first and `[EOS]` last."""
        texts = [
            (task, label, ids) for task, each in enumerate(class_token_ids.values()) for label, ids in enumerate(each)
        ]
        longest = max(len(ids) for _, _, ids in texts)
        padded = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for _, _, ids in texts])
        return cls(
            start_id=int(padded[0, 0]),
            words=padded[:, 1:].to(device),
            read_out=(read_out_positions(padded, eos_token_id) - 1).to(device),
            task_ids=torch.tensor([task for task, _, _ in texts], device=device),
            labels=torch.tensor([label for _, label, _ in texts], device=device),
            num_classes=torch.tensor([len(each) for each in class_token_ids.values()], device=device),
        )

    def of_tasks(self, tasks: torch.Tensor) -> ClassTexts:
        """The texts of some of the tasks, `tasks` their ids; `num_classes` stays that of all."""
        chosen = torch.isin(self.task_ids, tasks)
        read_out = self.read_out[chosen]
        return self._replace(
            words=self.words[chosen, : int(read_out.max()) + 1 if len(read_out) else 0],
            read_out=read_out,
            task_ids=self.task_ids[chosen],
            labels=self.labels[chosen],
        )

    def by_task(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[S, D]` of the texts as `[N, C, D]`, zero beyond a task's classes."""
        shape = len(self.num_classes), int(self.num_classes.max()), features.shape[-1]
        return features.new_zeros(shape).index_put((self.task_ids, self.labels), features)


def task_logits(
    embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    num_classes: torch.Tensor,
    task_ids: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Cosine similarity times the logit scale, over the classes of each sample's own task (Eq. 1).

    Args:
        embeds: `[B, D]` image features.
        class_embeds: `[N, C, D]` class features.
        num_classes: `[N]`.
        task_ids: `[B]`.
        scale: scalar 1/τ.

    Returns:
        `[B, C]` in float32 or better; -inf beyond a task's classes.
    """
    precise = torch.promote_types(embeds.dtype, torch.float32)
    (class_embeds, rows), num_columns = tasks_in_use(class_embeds, task_ids), class_embeds.shape[1]
    most = int(num_classes[task_ids].max()) if len(task_ids) else 0
    images, broken_images = _finite_rows(embeds.to(precise))
    classes, broken_classes = _finite_rows(class_embeds[:, :most].to(precise))
    with torch.autocast(embeds.device.type, enabled=False):
        every_task = torch.einsum("bd,ncd->bnc", F.normalize(images, dim=-1), F.normalize(classes, dim=-1))
    logits = every_task[torch.arange(len(embeds), device=embeds.device), rows] * scale.to(precise)
    logits = logits.masked_fill((broken_images | broken_classes.any(1)[rows])[:, None], torch.nan)
    beyond = torch.arange(most, device=logits.device) >= num_classes[task_ids, None]
    return F.pad(logits.masked_fill(beyond, -torch.inf), (0, num_columns - most), value=-torch.inf)


def _finite_rows(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `[..., D]` with zeros in rows that are not finite, and which rows these are.

    The product of all images with all classes would otherwise carry one task's NaN into the others' gradients.
    """
    broken = ~features.detach().isfinite().all(-1)  # no graph, which would keep the features for nothing
    return torch.where(broken[..., None], 0, features), broken


def task_losses(logits: torch.Tensor, labels: torch.Tensor, task_ids: torch.Tensor, num_tasks: int) -> torch.Tensor:
    """Mean cross-entropy of each task's samples `[N]` (Eq. 3), nan where a task has no sample.

    Args:
        logits: `[B, C]`.
        labels: `[B]` within the sample's task.
        task_ids: `[B]`.
        num_tasks: N.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    counts = torch.bincount(task_ids, minlength=num_tasks)
    sums = losses.new_zeros(num_tasks).index_add(0, task_ids, losses)
    return (sums / counts.clamp(min=1)).masked_fill(counts == 0, torch.nan)


def check_labels(labels: torch.Tensor, task_ids: torch.Tensor, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` that names the first label out of its task's range."""
    names = list(tasks)
    counts = torch.tensor([len(tasks[name]) for name in names], device=labels.device)
    wrong = (labels < 0) | (labels >= counts[task_ids])
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        task = names[int(task_ids[first])]
        raise ValueError(
            f"`labels[{first}]` is {int(labels[first])}, but task {task!r} has {len(tasks[task])} classes "
            f"(labels 0..{len(tasks[task]) - 1})."
        )
