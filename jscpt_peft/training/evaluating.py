"""A `Trainer` that evaluates a JSCPT model: accuracies by task, every image once on any number of processes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy

from jscpt_peft.data import ImageTaskDataset
from jscpt_peft.evaluation import multi_task_accuracy

from .arguments import DEFAULT_METRIC
from .faults import faults_named, ignore_interrupts


class MultiTaskEvaluator(Trainer):
    """`Trainer.evaluate` and `Trainer.predict` for the tasks `task_names`."""

    task_names: list[str]

    def get_eval_dataloader(self, eval_dataset: str | ImageTaskDataset | None = None) -> DataLoader:
        """As `Trainer`'s, with the bound on how long a data worker may take."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise ValueError("`eval_dataset` is missing: give one to the trainer or to `evaluate`.")
        return self.get_test_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: ImageTaskDataset) -> DataLoader:
        """As `Trainer`'s, likewise."""
        return self.accelerator.prepare(self.make_loader(test_dataset, batch_size=self.args.eval_batch_size))

    def make_loader(self, dataset: ImageTaskDataset, **options: Any) -> DataLoader:
        """A loader whose workers leave Ctrl-C to the main process and are given up after `dataloader_timeout`.

        Args:
            dataset: images of all tasks.
            options: further ones of `DataLoader`.
        """
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            worker_init_fn=ignore_interrupts,
            timeout=self.args.dataloader_timeout if workers else 0,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            **options,
        )

    def prediction_step(
        self,
        _model: torch.nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 (Trainer passes it by name)
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        """Loss, logits `[B, C]` and `(labels, task_ids[, groups])` of one batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self.model.classify(inputs["pixel_values"], inputs["task_ids"], inputs["labels"])
        # The mean over images, which `Trainer` weighs by their number; that over tasks would depend on the batches.
        loss = cross_entropy(output.logits, inputs["labels"])
        if prediction_loss_only:
            return loss, None, None
        names = [name for name in ("labels", "task_ids", "groups") if name in inputs]
        return loss, output.logits, tuple(inputs[name] for name in names)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer`'s; of every image its predicted class and its loss are gathered, not the logits of all classes.

        With a `compute_metrics` or `preprocess_logits_for_metrics` of one's own the logits are.
        """
        given = self.preprocess_logits_for_metrics
        if given is None and self.compute_metrics == self.multi_task_accuracy:
            self.preprocess_logits_for_metrics = _classes_and_losses
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.preprocess_logits_for_metrics = given

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As `Trainer`'s, with the exact mean loss where logits or losses are gathered.

        `Trainer` repeats a batch's mean loss for each of its images: with several processes that counts the images
        that fill up the last batch. What is gathered holds every image once.
        """
        with faults_named(self.args.ddp_timeout):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.predictions is None:
            return output
        if self.preprocess_logits_for_metrics is _classes_and_losses:
            _, losses = output.predictions
            output.metrics[f"{metric_key_prefix}_loss"] = float(losses.mean())
        elif self.preprocess_logits_for_metrics is None and isinstance(output.predictions, np.ndarray):
            logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids[0])
            output.metrics[f"{metric_key_prefix}_loss"] = cross_entropy(logits.float(), labels).item()
        return output

    def multi_task_accuracy(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracies of gathered predictions, for `compute_metrics`."""
        labels, task_ids, *groups = prediction.label_ids
        answers = prediction.predictions
        return multi_task_accuracy(
            predictions=answers[0] if isinstance(answers, tuple) else answers.argmax(-1),
            references=labels,
            task_ids=task_ids,
            task_names=self.task_names,
            groups=groups[0] if groups else None,
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As `Trainer`'s; metrics of one's own need not have the accuracy that is compared unless it is asked for."""
        absent = f"eval_{DEFAULT_METRIC}" not in metrics and self.args.metric_for_best_model == DEFAULT_METRIC
        if absent and not self.args.load_best_model_at_end and self.args.save_strategy != SaveStrategy.BEST:
            return False
        return super()._determine_best_metric(metrics, trial)

    def compute_loss_context_manager(self) -> AbstractContextManager:
        """Autocast: accelerate puts it around `model.forward` alone, which is not what computes the losses here."""
        return self.accelerator.autocast()


def _classes_and_losses(logits: Tensor, labels: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Predicted classes `[B]` and losses `[B]` of a batch, from logits `[B, C]`."""
    return logits.argmax(-1), cross_entropy(logits.float(), labels[0], reduction="none")
