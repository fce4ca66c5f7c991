"""Evaluation by `JSCPTTrainer`: answers of a batch, accuracies by task, and the mean loss over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from jscpt_peft.evaluation import multi_task_accuracy

from .own_loss import OwnLoss, own_loss_sums

Answers = tuple[Tensor | None, Tensor | None, tuple[Tensor, ...] | None]


def answers(model: Any, inputs: dict[str, Tensor], loss_only: bool, own_loss: OwnLoss | None = None) -> Answers:
    """Loss, logits `[B, C]` and `(labels, task_ids[, groups])` of one batch, as of `Trainer.prediction_step`.

    Without labels there are logits alone.
    """
    labels, task_ids = inputs.get("labels"), inputs["task_ids"]
    logits = model.classify(inputs["pixel_values"], task_ids, labels).logits
    if labels is None:
        return None, logits, None
    # The mean over images, which `Trainer` weighs by their number; that over tasks would depend on the batches.
    if own_loss is None:
        loss = cross_entropy(logits, labels)
    else:
        classes = [len(names) for names in model.active_jscpt_config.tasks.values()]
        loss = own_loss_sums(own_loss, logits, labels, task_ids, classes)[0].sum() / len(labels)
    if loss_only:
        return loss, None, None
    return loss, logits, tuple(inputs[name] for name in ("labels", "task_ids", "groups") if name in inputs)


def classes_and_losses(logits: Tensor, labels: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor]:
    """Predicted classes `[B]` and losses `[B]` of a batch, from logits `[B, C]`."""
    if labels is None:
        raise ValueError("the images to evaluate have no `labels` to count accuracies by: use `predict`.")
    return logits.argmax(-1), cross_entropy(logits.float(), labels[0], reduction="none")


def accuracies(prediction: EvalPrediction, task_names: Sequence[str]) -> dict[str, float]:
    """Accuracies of gathered predictions: logits, or what `classes_and_losses` gives."""
    labels, task_ids, *groups = prediction.label_ids
    given = prediction.predictions
    return multi_task_accuracy(
        predictions=given[0] if isinstance(given, tuple) else given.argmax(-1),
        references=labels,
        task_ids=task_ids,
        task_names=task_names,
        groups=groups[0] if groups else None,
    )


def mean_loss(output: EvalLoopOutput) -> float:
    """The mean loss over the images of an evaluation, each counted once, of what was gathered of them.

    `Trainer` repeats a batch's mean loss for each of its images: with several processes that counts the images that
    fill up the last batch.
    """
    if isinstance(output.predictions, tuple):
        return float(output.predictions[1].mean())
    logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids[0])
    return cross_entropy(logits.float(), labels).item()
