"""Evaluation by `JSCPTTrainer`: answers of a batch, accuracies by task, and the mean loss over images."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from jscpt_peft.choices import check_choice
from jscpt_peft.data.by_task import check_map_style
from jscpt_peft.evaluation import multi_task_accuracy
from jscpt_peft.model.causes import cause_of_nan
from jscpt_peft.model.task_rows import TaskRows

from .arguments import JSCPTTrainingArguments
from .data_checks import check_some, check_tasks
from .loading import make_loader
from .lost_processes import lost_processes_named
from .own_loss import own_loss_sums

logger = logging.get_logger(__name__)

Answers = tuple[Tensor | None, Tensor | None, tuple[Tensor, ...] | None]


class EvaluatingTrainer(Trainer):
    """A `Trainer` that evaluates: among every task's own classes, gathering no more of an image than is needed."""

    args: JSCPTTrainingArguments
    task_names: list[str]

    def compute_loss_context_manager(self) -> AbstractContextManager:
        """Autocast: accelerate puts it around `model.forward` alone, which is not what computes the losses here."""
        return self.accelerator.autocast()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer`'s, with the bound on how long a data worker may take."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            check_choice("eval_dataset", dataset, self.eval_dataset if isinstance(self.eval_dataset, dict) else ())
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise ValueError("`eval_dataset` is missing: give one to the trainer or to `evaluate`.")
        return self._loader("eval_dataset", dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `Trainer`'s, likewise; a data set without images, or of other tasks or classes, is refused."""
        return self._loader("test_dataset", test_dataset)

    def _loader(self, argument: str, dataset: Any) -> DataLoader:
        check_map_style(argument, dataset)
        check_some(argument, dataset)
        check_tasks(argument, dataset, self.tested_tasks())
        options = {"batch_size": self.args.eval_batch_size}
        return self.accelerator.prepare(make_loader(dataset, self.args, self.data_collator, **options))

    def tested_tasks(self) -> dict[str, list[str]]:
        """Task -> the classes that labels of images to evaluate number. For subclasses."""
        return self.model.active_jscpt_config.tasks

    def prediction_step(
        self, _model: torch.nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, **_: Any
    ) -> Answers:
        """Loss, logits `[B, C]` and `(labels, task_ids[, groups])` of one batch; without labels logits alone."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self._answers(self._prepare_inputs(inputs), prediction_loss_only)

    def _answers(self, inputs: dict[str, Tensor], loss_only: bool) -> Answers:
        labels, task_ids = inputs.get("labels"), inputs.get("task_ids")
        if task_ids is None:
            raise ValueError("the images to evaluate have no `task_ids`: say of which of the model's tasks each is.")
        logits = self.model.classify(inputs["pixel_values"], task_ids, labels).logits
        if labels is None:
            return None, logits, None
        # The mean over images, which `Trainer` weighs by their number; that over tasks would depend on the batches.
        if self.compute_loss_func is None:
            loss = cross_entropy(logits, labels)
        else:
            classes = [len(names) for names in self.model.active_jscpt_config.tasks.values()]
            sums, _ = own_loss_sums(self.compute_loss_func, logits, labels, TaskRows.of(task_ids), classes)
            loss = sums.sum() / len(labels)
        if loss_only:
            return loss, None, None
        return loss, logits, tuple(inputs[name] for name in ("labels", "task_ids", "groups") if name in inputs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer`'s; of every image its predicted class and its loss are gathered, not the logits of all classes.

        With a `compute_metrics` or `preprocess_logits_for_metrics` of one's own the logits are.
        """
        given = self.preprocess_logits_for_metrics
        if given is None and self.compute_metrics == self.multi_task_accuracy:
            self.preprocess_logits_for_metrics = classes_and_losses
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.preprocess_logits_for_metrics = given

    def check_best_metric(self) -> None:
        """Raises a `ValueError` before a run where no evaluation would give `metric_for_best_model`."""
        ours = self.compute_metrics == self.multi_task_accuracy and not isinstance(self.eval_dataset, dict)
        if ours and self.args.needs_a_metric and self.args.metric_for_best_model is not None:
            accuracies = (*(f"accuracy/{name}" for name in self.task_names), "mean_accuracy", "worst_task_accuracy")
            named = self.args.metric_for_best_model.removeprefix("eval_")
            check_choice("metric_for_best_model", named, ("loss", *accuracies, "worst_group_accuracy"))

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As `Trainer`'s, with the exact mean loss where logits or losses are gathered."""
        with lost_processes_named(self.args.ddp_timeout):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        gathered = output.predictions is not None and output.label_ids is not None and self.compute_loss_func is None
        if gathered and self.preprocess_logits_for_metrics in (None, classes_and_losses):
            output.metrics[f"{metric_key_prefix}_loss"] = mean_loss(output)
        if math.isnan(output.metrics.get(f"{metric_key_prefix}_loss", 0.0)):
            message = f"The loss of an evaluation is NaN, so that its accuracies say nothing: {self.cause_of_nan()}."
            if not self.is_in_train:  # which ends by itself, with the last good state
                raise FloatingPointError(message)
            logger.warning(message)
        return output

    def cause_of_nan(self) -> str:
        """Why logits are NaN, as a clause. For subclasses."""
        return cause_of_nan(self.model.base_model)

    def multi_task_accuracy(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracies of gathered predictions, logits or what `classes_and_losses` gives, for `compute_metrics`."""
        labels, task_ids, *groups = prediction.label_ids
        given = prediction.predictions
        return multi_task_accuracy(
            predictions=given[0] if isinstance(given, tuple) else given.argmax(-1),
            references=labels,
            task_ids=task_ids,
            task_names=self.task_names,
            groups=groups[0] if groups else None,
        )


def classes_and_losses(logits: Tensor, labels: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor]:
    """Predicted classes `[B]` and losses `[B]` of a batch, from logits `[B, C]`."""
    if labels is None:
        raise ValueError("the images to evaluate have no `labels` to count accuracies by: use `predict`.")
    return logits.argmax(-1), cross_entropy(logits.float(), labels[0], reduction="none")


def mean_loss(output: EvalLoopOutput) -> float:
    """The mean loss over the images of an evaluation, each counted once, of what was gathered of them.

    `Trainer` repeats a batch's mean loss for each of its images: with several processes that counts the images that
    fill up the last batch.
    """
    if isinstance(output.predictions, tuple):
        return float(output.predictions[1].mean())
    logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids[0])
    return cross_entropy(logits.float(), labels).item()
