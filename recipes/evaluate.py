"""Evaluates a trained adapter, or zero-shot CLIP, on the test images of any task set.

    python recipes/evaluate.py --adapter outputs/mine --task_set folder --data_root images --output_dir outputs/eval
    python recipes/evaluate.py --adapter user/name --task_set office_home --bf16 --output_dir outputs/eval
    python recipes/evaluate.py --method zero_shot --task_set shapes --corruptions none --output_dir outputs/zero_shot
    accelerate launch recipes/evaluate.py --adapter outputs/mine --task_set shapes --output_dir outputs/eval

Writes evaluation.json and evaluation.md (accuracy, macro-F1 and calibration by task, mean, worst task and its most
frequent confusions, worst group where the data know groups, accuracy under common corruptions), figures of them and
manifest.json (which images were tested). An adapter is tested on the split that it was trained with, where it is of
this task set and no option asks for another one; and never on images that it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from arguments import ModelArguments, parse
from base_model import load_processor
from cli_errors import cli_errors, console
from evaluated_model import EvaluatedModelArguments, check_evaluated, load_evaluated
from output_folder import output_folder
from PIL import Image
from rich.progress import track
from task_data import DataArguments
from tested_images import check_output, load_tested, own_split
from transformers import ProgressCallback

from jscpt_peft.choices import check_choice
from jscpt_peft.data import ImageTaskDataset, Task, TaskSet, image_transform, read_column, to_rgb, write_manifest
from jscpt_peft.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from jscpt_peft.data.manifest import MANIFEST_FILE
from jscpt_peft.data.splits import ranked
from jscpt_peft.evaluation import (
    Predictions,
    Robustness,
    draw_evaluation,
    evaluate_predictions,
    print_evaluation,
    write_evaluation,
)
from jscpt_peft.settings import PositiveInt, setting
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.distributed import by_first_process, leave

SHOWN = {"output_dir", "seed", "bf16", "use_cpu", "per_device_eval_batch_size", "dataloader_num_workers"}
# What a configuration file says about training an adapter. A trained one knows it, its base model included.
OF_TRAINING = set(ModelArguments.__annotations__)


@dataclass
class EvaluationArguments(JSCPTTrainingArguments):
    """How it is evaluated; of the arguments of training, those of batches and devices count."""

    _argument_group_name: ClassVar[str] = "evaluation"
    corruptions: str = setting("all", f"all, none, or some with commas between: {', '.join(CORRUPTIONS)}.")
    corruption_images: PositiveInt = setting(100, "Images of each task under each corruption and severity.")
    overwrite_output_dir: bool = setting(False, "Write into an output directory in use.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.chosen_corruptions:
            check_choice("corruptions", name, CORRUPTIONS)
        self.eval_strategy = "no"  # that of training, where a configuration file sets it
        self.report_to = []
        self.push_to_hub = False

    @property
    def chosen_corruptions(self) -> tuple[str, ...]:
        named = tuple(dict.fromkeys(name.strip() for name in self.corruptions.split(",")))
        return {("all",): CORRUPTIONS, ("none",): ()}.get(named, named)


def main(command_line: list[str] | None = None) -> None:
    kinds = (DataArguments, EvaluatedModelArguments, EvaluationArguments)
    data, model_arguments, arguments = parse(kinds, __doc__, command_line, shown=SHOWN, left_out=OF_TRAINING)
    with cli_errors(), output_folder(arguments.output_dir, data):
        run(data, model_arguments, arguments)


def run(data: DataArguments, model_arguments: EvaluatedModelArguments, arguments: EvaluationArguments) -> None:
    check_evaluated(model_arguments)
    by_first_process(lambda: prepare_output(arguments))
    own = own_split(model_arguments.adapter, model_arguments.revision) if model_arguments.adapter is not None else None
    tested = load_tested(data, own, arguments.seed, console)
    task_set = tested.task_set
    by_first_process(lambda: check_output(arguments.output_dir, task_set.manifest))
    evaluated = load_evaluated(model_arguments, task_set)
    processor = load_processor(evaluated.source, evaluated.model.get_base_model())
    size = processor.crop_size["height"]
    transform = image_transform(size, processor.image_mean, processor.image_std, train=False)
    tests = task_set.split("test")

    console.print(
        f"{sum(map(len, tests))} test images of {len(task_set)} tasks, {tested} ...", markup=False, soft_wrap=True
    )
    trainer = JSCPTTrainer(evaluated.model, arguments, compute_metrics=None)
    make_images = partial(ImageTaskDataset, transform=transform, task_ids=evaluated.task_ids)
    predictions = predict(trainer, make_images(tests))
    robustness, examples = None, []
    if arguments.chosen_corruptions:
        trainer.remove_callback(ProgressCallback)  # one line shows the progress of them all
        robustness = measure_robustness(trainer, task_set, predictions, make_images, size)
        first = to_rgb(tests[0][0]["image"])
        examples = corrupted_examples(first, arguments.chosen_corruptions, size, arguments.seed)
    if arguments.process_index == 0:
        evaluation = evaluate_predictions(
            predictions,
            task_set.class_names,
            evaluated_model={
                "method": model_arguments.method,
                "adapter": model_arguments.adapter,
                "revision": model_arguments.revision,
                "base_model": evaluated.source,
                "data_root": data.data_root,
                **tested.protocol(),
                "corruption_seed": arguments.seed if arguments.chosen_corruptions else None,
            },
            task_set=task_set.name,
            robustness=robustness,
        )
        print_evaluation(evaluation, console)
        written = write_evaluation(evaluation, arguments.output_dir)
        written += draw_evaluation(evaluation, arguments.output_dir, examples)
        written.append(Path(arguments.output_dir, MANIFEST_FILE))
        write_manifest(task_set.manifest, written[-1])
        console.print(f"Written to {arguments.output_dir}: {', '.join(path.name for path in written)}", soft_wrap=True)
    leave()


def prepare_output(arguments: EvaluationArguments) -> None:
    output = Path(arguments.output_dir)
    if output.is_dir() and any(output.iterdir()) and not arguments.overwrite_output_dir:
        raise ValueError(f"`output_dir` {output} is not empty: choose another, or pass --overwrite_output_dir.")


# ---- predictions ----------------------------------------------------------------------------------------------------


def predict(trainer: JSCPTTrainer, images: ImageTaskDataset) -> Predictions:
    """The model's predictions of all images, in their order; `Trainer` shares the work among processes."""
    prediction = trainer.predict(images, metric_key_prefix="test")
    labels, _, *groups = prediction.label_ids
    task_ids = np.repeat(np.arange(len(images.datasets)), [len(task) for task in images.datasets])
    return Predictions.from_logits(prediction.predictions, labels, task_ids, groups[0] if groups else None)


def measure_robustness(
    trainer: JSCPTTrainer,
    task_set: TaskSet,
    predictions: Predictions,
    make_images: Callable[..., ImageTaskDataset],
    size: int,
) -> Robustness:
    """Accuracies under the chosen corruptions, on images drawn by (seed, task, key); `predictions` are without."""
    arguments, names, tests = trainer.args, list(task_set.class_names), task_set.split("test")
    rows = [chosen_rows(task, arguments.corruption_images, arguments.seed) for task in task_set]
    chosen = [test.select(each) for test, each in zip(tests, rows, strict=True)]
    starts = np.cumsum([0, *map(len, tests)])[:-1]
    clean = predictions.chosen(np.concatenate([start + each for start, each in zip(starts, rows, strict=True)]))
    conditions = [(name, severity) for name in arguments.chosen_corruptions for severity in SEVERITIES]
    accuracies = {}
    for name, severity in track(conditions, "corruptions", console=console, transient=True, disable=console.quiet):
        corrupted = partial(corrupt, corruption=name, severity=severity, seed=arguments.seed, size=size)
        accuracies[name, severity] = by_task(predict(trainer, make_images(chosen, corrupt=corrupted)), names)
    return Robustness(
        images_per_task=arguments.corruption_images,
        clean=pd.Series(by_task(clean, names), index=names),
        accuracies=pd.DataFrame(accuracies, index=names).T,
    )


def chosen_rows(task: Task, count: int, seed: int) -> np.ndarray:
    """Rows of the first `count` test images in the order in which `seed` draws them, ascending."""
    rows = {key: row for row, key in enumerate(read_column(task.test, "key"))}
    return np.sort([rows[key] for key in ranked(rows, seed, task.name)[:count]])


def by_task(predictions: Predictions, names: list[str]) -> list[float]:
    accuracies = predictions.accuracies(names)
    return [accuracies[f"accuracy/{name}"] for name in names]


def corrupted_examples(
    image: Image.Image, corruptions: Sequence[str], size: int, seed: int
) -> list[tuple[str, list[Image.Image]]]:
    """The image as it is, and under every corruption in its severities."""

    def severities(name: str) -> list[Image.Image]:
        return [corrupt(image, name, severity, seed, size=size) for severity in SEVERITIES]

    return [("as it is", [image]), *((name, severities(name)) for name in corruptions)]


if __name__ == "__main__":
    main()
