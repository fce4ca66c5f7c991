"""Loaders whose data workers leave signals to the main process, and do not hang for ever."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset

from .arguments import JSCPTTrainingArguments


def make_loader(
    dataset: Dataset, args: JSCPTTrainingArguments, collate: Callable, most_workers: int | None = None, **options: Any
) -> DataLoader:
    """A loader with the workers of `args`, or at most `most_workers`, which are given up after `dataloader_timeout`.

    Further `options` are those of `DataLoader`.
    """
    workers = args.dataloader_num_workers if most_workers is None else min(args.dataloader_num_workers, most_workers)
    return DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        worker_init_fn=ignore_interrupts,
        timeout=args.dataloader_timeout if workers else 0,
        multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
        **options,
    )


def ignore_interrupts(_worker: int) -> None:
    """For data workers: Ctrl-C is the main process's to answer, which still needs the batches under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the main process's handler: this is how a loader ends them
