"""A `Trainer` that evaluates a JSCPT model: accuracies by task, every image once on any number of processes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput

from jscpt_peft.data import ImageTaskDataset
from jscpt_peft.evaluation import MultiTaskAccuracy

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

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As `Trainer`'s, with the exact mean loss where there are logits.

        `Trainer` repeats a batch's mean loss for each of its images: with several processes that counts the images
        that fill up the last batch. The gathered logits hold every image once.
        """
        with faults_named(self.args.ddp_timeout):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.predictions is not None and output.label_ids is not None:
            logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids[0])
            output.metrics[f"{metric_key_prefix}_loss"] = cross_entropy(logits.float(), labels).item()
        return output

    def multi_task_accuracy(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracies of gathered predictions, for `compute_metrics`."""
        labels, task_ids, *groups = prediction.label_ids
        return MultiTaskAccuracy(self.task_names).compute(
            predictions=prediction.predictions.argmax(-1),
            references=labels,
            task_ids=task_ids,
            groups=groups[0] if groups else None,
        )

    def compute_loss_context_manager(self) -> AbstractContextManager:
        """Autocast: accelerate puts it around `model.forward` alone, which is not what computes the losses here."""
        return self.accelerator.autocast()
