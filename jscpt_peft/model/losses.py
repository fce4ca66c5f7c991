"""From features to predictions: task logits (Eq. 1) and task losses (Eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .task_rows import TaskRows


@dataclass
class JSCPTOutput(ModelOutput):
    """Output of `classify`; N tasks, B images, C the largest number of classes of a task, D the projection size.

    Args:
        loss: mean of the losses of the tasks present; `None` without labels.
        task_losses: `[N]` mean loss of each task's images (Eq. 3), nan where a task is absent; `None` without labels.
        penalties: `[N]` what the head adds to them in `loss`; `None` where it has no penalty or gradients are off.
        loss_sums: `[N]` the same summed over the images, 0 where a task is absent; `None` without labels.
        task_counts: `[N]` images of each task; `None` without labels.
        logits: `[B, C]`, -inf beyond the classes of a sample's task; log-probabilities of a head with several views.
        image_embeds: `[B, D]` x, not normalised.
        selected_embeds: `[B, D]` x̄ (Eq. 2), not normalised; `[B, K, D]` of a head with K views.
        class_embeds: `[N, C, D]` z, not normalised; zero beyond a task's classes.
    """

    loss: Tensor | None = None
    task_losses: Tensor | None = None
    penalties: Tensor | None = None
    logits: Tensor | None = None
    image_embeds: Tensor | None = None
    selected_embeds: Tensor | None = None
    class_embeds: Tensor | None = None
    loss_sums: Tensor | None = None
    task_counts: Tensor | None = None


def task_logits(
    embeds: Tensor,
    class_embeds: Tensor,
    counts: Sequence[int],
    num_classes: Tensor,
    rows: TaskRows,
    logits_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Logits over the classes of each sample's own task (Eq. 1).

    Args:
        embeds: `[B, D]` image features, or `[B, K, D]`, views of each image whose probabilities are averaged.
        class_embeds: `[N, C, D]` class features.
        counts: N numbers of classes.
        num_classes: `[N]` the same on the features' device.
        rows: the images' tasks.
        logits_of: what the base model makes of cosine similarities: their product with 1/τ, for CLIP.

    Returns:
        `[B, C]` in float32 or better; -inf beyond a task's classes.
    """
    if embeds.dim() == 3:
        views = rows.repeated(embeds.shape[1])
        logits = task_logits(embeds.flatten(0, 1), class_embeds, counts, num_classes, views, logits_of)
        return averaged_over_views(logits.view(*embeds.shape[:2], -1))
    precise = torch.promote_types(embeds.dtype, torch.float32)
    class_embeds, num_columns = rows.choose(class_embeds), class_embeds.shape[1]
    most = max([counts[task] for task in rows.tasks] or [0])
    images, broken_images = _finite_rows(embeds.to(precise))
    classes, broken_classes = _finite_rows(class_embeds[:, :most].to(precise))
    with torch.autocast(embeds.device.type, enabled=False):
        cosines = _own_products(F.normalize(images, dim=-1), F.normalize(classes, dim=-1), rows)
    logits = logits_of(cosines)
    logits = logits.masked_fill((broken_images | rows.spread(broken_classes.any(1)))[:, None], torch.nan)
    if any(counts[task] < most for task in rows.tasks):
        beyond = torch.arange(most, device=logits.device) >= num_classes[rows.ids, None]
        logits = logits.masked_fill(beyond, -torch.inf)
    return F.pad(logits, (0, num_columns - most), value=-torch.inf) if most < num_columns else logits


def _own_products(images: Tensor, classes: Tensor, rows: TaskRows) -> Tensor:
    """Products `[B, C]` of images `[B, D]` with the classes of their own tasks, of `[T, C, D]`."""
    if rows.each is not None:
        return torch.bmm(images.unflatten(0, (len(rows.tasks), rows.each)), classes.mT).flatten(0, 1)
    every_task = torch.einsum("bd,ncd->bnc", images, classes)
    return every_task[torch.arange(len(images), device=images.device), rows.places()]


def averaged_over_views(logits: Tensor) -> Tensor:
    """log Σ_c P(Y | c) / K `[B, C]` of the logits `[B, K, C]` of K views: logits whose softmax is the mean one."""
    beyond = logits[:, 0].isneginf()  # of all views alike: set aside, since the gradient of log 0 is none
    views = logits.log_softmax(-1).masked_fill(beyond[:, None], 0)
    return (views.logsumexp(1) - math.log(logits.shape[1])).masked_fill(beyond, -torch.inf)


def _finite_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[..., D]` with zeros in rows that are not finite, and which rows these are.

    The product of all images with all classes would otherwise carry one task's NaN into the others' gradients.
    """
    broken = ~features.detach().isfinite().all(-1)  # no graph, which would keep the features for nothing
    return torch.where(broken[..., None], 0, features), broken


def task_loss_sums(logits: Tensor, labels: Tensor, rows: TaskRows, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over each task's samples `[N]` (Eq. 3), and their numbers `[N]`.

    Sums and counts, since batches, chunks and processes add up: they are divided once, by whoever has all of them.

    Args:
        logits: `[B, C]`.
        labels: `[B]` within the sample's task.
        rows: the samples' tasks.
        num_tasks: N.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    return rows.sums(losses, num_tasks), rows.sums(torch.ones_like(rows.ids), num_tasks)


def mean_losses(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean losses `[N]`, nan where a task has no sample."""
    return (sums / counts.clamp(min=1)).masked_fill(counts == 0, torch.nan)


def check_labels(labels: Tensor, task_ids: Tensor, tasks: dict[str, list[str]]) -> None:
    """Raises a `ValueError` that names the first label out of its task's range."""
    if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.shape != task_ids.shape:
        raise ValueError(
            f"`labels` has dtype {labels.dtype} and shape {tuple(labels.shape)}: give whole numbers, one for each of "
            f"the {len(task_ids)} images."
        )
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
