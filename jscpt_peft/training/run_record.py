"""What a run adds to the card of its adapter: settings, data, accuracies, results, figures, where it ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from peft import PeftConfig

from jscpt_peft.data import read_manifest
from jscpt_peft.data.manifest import MANIFEST_FILE, drawn_by, on_hub
from jscpt_peft.model import JSCPTConfig
from jscpt_peft.model.part_options import KNOWN_BY
from jscpt_peft.reading import read_json, read_text
from jscpt_peft.serving.card import TrainingRecord

from .arguments import WEIGHTING_OPTIONS, JSCPTTrainingArguments
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
    "modules.png": "Which task takes how much from which feature module",
}
# Of the configuration, what says nothing of the method; the tokenizer's name may be a path of this machine.
UNSAID = {"tokenizer_name_or_path", "target_modules", "base_model", "adapter", "weighting_class"}
UNSAID |= {each.name for each in fields(PeftConfig)}
# Where the images of task sets come from whose manifests name no sources.
ORIGINS = {
    "shapes": "drawn by `jscpt_peft`",
    "emoji": "Fluent 3D, Noto, OpenMoji and Twemoji from npm, by `tools/prepare_emoji.py`",
    "icons": "icons of 24 open-licensed sets (recipes/assets/icons/LICENSES.md)",
    "folder": "folders of images",
}
# What reading somebody else's file of the name of ours, or one that is cut off, may raise.
UNKNOWN_FORM = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


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
    task_set, data = data_of(output, dict(zip(task_names, configuration.get("train images", ()), strict=False)))
    return TrainingRecord(
        configuration=configuration,
        task_set=task_set,
        data=data,
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

    `fixed` and `reproducing` are the run's `fixed_configuration` and `reproducing_configuration`.
    """
    chosen = {fixed["weighting"], fixed["gradient_aggregator"]}
    unused = UNSAID | {name for name, needed in WEIGHTING_OPTIONS.items() if chosen.isdisjoint(needed)}
    unused |= {name for name, (part, knowing) in KNOWN_BY.items() if getattr(adapter, part) not in knowing}
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
        rows = read_json(output / RESULTS)["tasks"]
        if {task: row["trained"] for task, row in rows.items()} != expected:
            return None
        return read_text(output / RESULTS_TABLE)
    except UNKNOWN_FORM:
        return None


def data_of(output: Path, sizes: Mapping[str, int]) -> tuple[str, dict[str, tuple[str, str]]]:
    """The task set, and per source what it is and which part is trained with, if the manifest there is of the run.

    That is so where its numbers of training images, by task, are `sizes`.
    """
    try:
        manifest = read_manifest(output / MANIFEST_FILE)
        if {task: len(splits["train"]) for task, splits in manifest["tasks"].items()} != sizes:
            return "", {}
        task_set, options = manifest["task_set"], manifest["options"]
        sources = options.get("sources") or {task_set: ""}
        rows = {
            name: _source({**manifest, "options": {**options, "sources": {name: sources[name]}}}) for name in sources
        }
        return f"`{task_set}`, drawn with seed {int(manifest['seed'])}", rows
    except UNKNOWN_FORM:
        return "", {}


def _source(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """What the one source of a manifest is, and which part of its training images was drawn."""
    (origin,) = manifest["options"]["sources"].values()
    fraction, shots = drawn_by(manifest)
    if fraction is not None:
        part = f"{100 * fraction:.3g} % of each class"
    elif isinstance(shots, Mapping):
        few = ", ".join(f"{each:d} of each class in {task}" for task, each in shots.items())
        part = f"all training images, but {few}"
    else:
        part = "all training images" if shots is None else f"up to {shots:d} of each class"
    if noise := manifest["options"].get("label_noise"):
        part += "; wrong labels: " + ", ".join(f"{100 * each:.3g} % in {task}" for task, each in noise.items())
    if not origin:
        return ORIGINS[manifest["task_set"]], part
    if on_hub(manifest):
        return f"`{origin}` on the Hub", part
    absolute = PurePosixPath(origin).is_absolute() or PureWindowsPath(origin).is_absolute()
    return f"the folder `{PureWindowsPath(origin).name if absolute else origin}`", part


def environment(device: torch.device, log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Device, processes, and how long training took, as far as the log says."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    seconds = [logs["train_runtime"] for logs in log if "train_runtime" in logs]
    time = {"training time": f"{seconds[-1]:.0f} s since the run was last started"} if seconds else {}
    return {"device": f"{name}, {world_size()} process{'es' if world_size() > 1 else ''}", **time}
