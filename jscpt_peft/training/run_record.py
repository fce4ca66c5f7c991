"""What a run adds to the card of its adapter: settings, accuracies, results, figures, where it ran."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig

from jscpt_peft.data.manifest import MANIFEST_FILE
from jscpt_peft.model import JSCPTConfig
from jscpt_peft.serving.card import TrainingRecord

from .arguments import JSCPTTrainingArguments
from .data_record import data_record
from .distributed import world_size
from .step_log import HISTORY_FILE

# What may lie beside the card: the recipe's results, the history and its figures.
RESULTS, RESULTS_TABLE = "results.json", "results.md"
FILES = {
    MANIFEST_FILE: "which image is in which split",
    HISTORY_FILE: "what the scheduler did, one row a step",
}
FIGURES = {
    "losses.png": "Training loss of each task",
    "weights.png": "Weight of each task in the update",
    "affinity.png": "Affinities between the tasks",
    "gradient_cosines.png": "Cosines between the tasks' gradients",
    "causal_effects.png": "Causal effect of each task's selected features",
    "prompt_scheduling.png": "Prompt scheduling of one task",
}
# Of the configuration, what says nothing of the method; the tokenizer's name may be a path of this machine.
UNSAID = {"tokenizer_name_or_path", "target_modules", "base_model"} | {each.name for each in fields(PeftConfig)}
AGGREGATOR_OPTIONS = ("cagrad_c", "fairgrad_alpha", "krum_byzantine", "krum_selected")


def training_record(
    args: JSCPTTrainingArguments,
    log: Sequence[Mapping[str, Any]],
    steps: int,
    evaluations: Sequence[Mapping[str, Any]],
    configuration: Mapping[str, Any],
    task_names: Sequence[str],
) -> TrainingRecord:
    """The record of a run as it stands.

    Args:
        args: of the run.
        log: of the run.
        steps: after which the weights were as they are now.
        evaluations: what of the log is of these weights.
        configuration: `settings` of the run; its `train images` tell whether a manifest is of the run.
        task_names: [N].
    """
    output = Path(args.output_dir)
    split, accuracies = last_accuracies(evaluations, task_names)
    results = results_of(output, accuracies)
    known = [accuracy for accuracy in accuracies.values() if not math.isnan(accuracy)]
    sizes = dict(zip(task_names, configuration.get("train images", ()), strict=False))
    return TrainingRecord(
        configuration=configuration,
        data=data_record(output, sizes),
        steps=steps,
        split=split,
        accuracies=accuracies,
        mean_accuracy=sum(known) / len(known) if known else None,
        results=results,
        figures={name: caption for name, caption in FIGURES.items() if results and (output / name).exists()},
        files={name: content for name, content in FILES.items() if (output / name).exists()},
        environment=environment(args.device, log),
    )


def settings(adapter: JSCPTConfig, fixed: Mapping[str, Any], reproducing: Mapping[str, Any]) -> dict[str, Any]:
    """What decided what a step does, without what is not set or not used.

    Args:
        adapter: the adapter's configuration.
        fixed: the run's `fixed_configuration`.
        reproducing: the run's `reproducing_configuration`.
    """
    unused = UNSAID if fixed["gradient_aggregator"] else UNSAID | set(AGGREGATOR_OPTIONS)
    simple = {
        name: value for name, value in {**vars(adapter), **fixed}.items() if isinstance(value, int | float | str)
    }
    chosen = {name: value for name, value in {**simple, **reproducing}.items() if name != "images"}
    chosen |= {f"{split} images": sizes for split, sizes in reproducing["images"].items()}
    return {name: value for name, value in chosen.items() if value is not None and name not in unused}


def last_accuracies(log: Sequence[Mapping[str, Any]], task_names: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The split and every task's accuracy of the last evaluation among a `Trainer`'s logs; none before the first."""
    for logs in reversed(log):
        for name in logs:
            if name.endswith("_mean_accuracy"):
                prefix = name.removesuffix("mean_accuracy")
                split = "validation" if prefix == "eval_" else prefix.rstrip("_")
                return split, {task: logs[f"{prefix}accuracy/{task}"] for task in task_names}
    return "", {}


def results_of(output: Path, accuracies: Mapping[str, float]) -> str | None:
    """The results table in a folder, if it is of the evaluation that gave `accuracies` and not of an earlier run."""
    if not (accuracies and (output / RESULTS).is_file() and (output / RESULTS_TABLE).is_file()):
        return None
    expected = {task: None if math.isnan(accuracy) else accuracy for task, accuracy in accuracies.items()}
    try:
        rows = json.loads((output / RESULTS).read_text(encoding="utf-8"))["tasks"]
        if {task: row["trained"] for task, row in rows.items()} != expected:
            return None
        return (output / RESULTS_TABLE).read_text(encoding="utf-8")
    # Files of these names, but somebody else's, or cut off.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def environment(device: torch.device, log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Device, processes, and how long training took, as far as the log says."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    seconds = [logs["train_runtime"] for logs in log if "train_runtime" in logs]
    time = {"training time": f"{seconds[-1]:.0f} s since the run was last started"} if seconds else {}
    return {"device": f"{name}, {world_size()} process{'es' if world_size() > 1 else ''}", **time}
