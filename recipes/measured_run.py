"""One run of a table: a training and one evaluation, kept in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from arguments import parse
from datasets import Dataset
from evaluated_model import zero_shot_model
from kept_features import features_file, keep_features, take_kept_features
from model_arguments import ModelArguments
from other_classes import OtherClassesTrainer
from outside import OutsideTrainer, outside_trainer
from outside_methods import OUTSIDE
from peft import get_peft_model
from run_material import Material, load_material
from task_data import DataArguments
from training_setup import check_method, make_trainer, method_config
from transformers import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from jscpt_peft.data import ImageTaskDataset, read_column
from jscpt_peft.data.base_to_new import images_of_classes, new_classes
from jscpt_peft.reading import one_line, read_json_object
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments

ZERO_SHOT = "zero_shot"
RESULT = "result.json"
KINDS = (DataArguments, ModelArguments, JSCPTTrainingArguments)
QUIET = ("--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none")
# Of whose trainings figures are drawn, from gradient cosines in the history: the others do not pay for these.
DRAWN = ("mvlpt", "jscpt")


@dataclass(frozen=True)
class Run:
    """What is done in a run.

    Attributes:
        setting, method: place in the table.
        words: arguments of recipes/train.py, all but the following.
        learning_rate: 0 where nothing is trained.
        seed: of data and training.
        split: `"validation"`, by which the learning rate is chosen, or `"test"`.
        views: crops of each training image whose features all runs share (`kept_features`); 0: images as they are.
    """

    setting: str
    method: str
    words: tuple[str, ...]
    learning_rate: float
    seed: int
    split: str
    views: int = 0

    @property
    def name(self) -> str:
        """The method without further arguments."""
        return self.method.split()[0]

    def folder(self, output: Path) -> Path:
        """Where it is kept; other arguments have another folder."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]
        words = f"{self.setting} {self.method} {self.split} {self.seed} {digest}".replace("--", "").split()
        return output / "runs" / "-".join(words).replace("/", "_")

    def result(self, output: Path) -> dict[str, Any] | None:
        """What `measure` has found, if it is done."""
        path = self.folder(output) / RESULT
        try:
            return read_json_object(path) if path.exists() else None
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read ({one_line(error)}): remove it, and the run is done anew."
            ) from error


def parsed(words: Sequence[str], method: str) -> tuple[DataArguments, ModelArguments, JSCPTTrainingArguments]:
    """What recipes/train.py makes of the arguments; zero-shot CLIP, which it does not train, is but a name here."""
    name, *further = method.split()
    named = [] if name == ZERO_SHOT else ["--method", name]
    drawn = ["--log_gradient_cosines"] if name in DRAWN else []
    arguments = parse(KINDS, "", [*words, *named, *further, *QUIET, *drawn])
    check_method(*arguments[1:])
    return arguments


def measure(run: Run, output: Path) -> None:
    """Trains and evaluates, unless that is done; a result is there as a whole or not at all.

    One that ends in a `FloatingPointError` is a result too, `diverged`: its message, instead of accuracies.
    """
    if run.result(output) is not None:
        return
    disable_progress_bar()
    folder = run.folder(output)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was broken off
    chosen = f"--learning_rate {run.learning_rate} --seed {run.seed}"  # last, so that they stand over the method's
    data, model_arguments, training = parsed([*run.words, "--output_dir", str(folder)], f"{run.method} {chosen}")
    material = load_material(data, model_arguments.model_name_or_path, training.seed)
    task_set = material.task_set
    if run.views:
        path = features_file(output / "features", material.source, data, run.views)
        kept = keep_features(material.clip, task_set, material.datasets, run.views, path)
        material = replace(material, datasets=kept)
        training.dataloader_num_workers, training.dataloader_persistent_workers = 0, False  # they are in memory
    trainer = _trainer(run, material, model_arguments, training)
    if run.views:
        take_kept_features(trainer.model)
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    tables = dict(zip(task_set.class_names, task_set.split(run.split), strict=True))
    started = perf_counter()
    try:
        if run.method != ZERO_SHOT:
            trainer.train()
        seconds = perf_counter() - started
        found = {
            "trainable_parameters": trainer.model.get_nb_trainable_parameters()[0],
            "steps": trainer.state.global_step,
            "train_seconds": seconds,
            "device": torch.cuda.get_device_name() if training.device.type == "cuda" else training.device.type,
            **_answers(trainer, tables, material.datasets[run.split]),
        }
        if material.has_new_classes and run.split == "test":
            found |= _on_new_classes(trainer, material, found)
    except FloatingPointError as error:
        if run.method == ZERO_SHOT:
            raise
        found = {"diverged": one_line(error)}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{RESULT}.part"
    part.write_text(json.dumps({**asdict(run), **found}), encoding="utf-8")
    part.replace(folder / RESULT)


def _trainer(
    run: Run, material: Material, model_arguments: ModelArguments, training: JSCPTTrainingArguments
) -> JSCPTTrainer | OutsideTrainer:
    if model_arguments.method in OUTSIDE:
        return outside_trainer(model_arguments, material, training)
    if run.method == ZERO_SHOT:
        return JSCPTTrainer(zero_shot_model(material.clip, material.source, material.task_set), training)
    config = method_config(material, model_arguments, training, resume=False)
    return make_trainer(get_peft_model(material.clip, config), material, training)


def _answers(trainer: JSCPTTrainer, tables: Mapping[str, Dataset], images: ImageTaskDataset) -> dict[str, Any]:
    """Which images of each task's table are classified rightly, `"101..."`, and which images these are."""
    keys = [read_column(table, "key") for table in tables.values()]
    prediction = trainer.predict(images)
    right = prediction.predictions.argmax(-1) == prediction.label_ids[0]
    by_task = dict(zip(tables, np.split(right, np.cumsum([len(each) for each in keys])[:-1]), strict=True))
    return {
        "accuracy": {task: float(each.mean()) for task, each in by_task.items()},
        "worst_group": prediction.metrics.get("test_worst_group_accuracy"),
        "right": {task: "".join(map(str, each.astype(int))) for task, each in by_task.items()},
        "images": hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16],
    }


def _on_new_classes(trainer: JSCPTTrainer, material: Material, base: dict[str, Any]) -> dict[str, Any]:
    """Columns `<task>, base` and `<task>, new`: the answers so far, and those on the classes training has not seen."""
    classes = new_classes(material.whole)
    tables = dict(zip(classes, images_of_classes(material.whole, classes), strict=True))
    among_new = OtherClassesTrainer(trainer.model, trainer.args, classes)
    images = ImageTaskDataset(list(tables.values()), material.datasets["test"].transform)
    new = _answers(among_new, tables, images)
    kinds = {"base": base, "new": new}
    columns = {
        name: {f"{task}, {kind}": each[name][task] for task in classes for kind, each in kinds.items()}
        for name in ("accuracy", "right")
    }
    return {**columns, "images": base["images"] + new["images"]}
