"""Evaluates a trained adapter, or zero-shot CLIP, on the test images of any task set.

    python recipes/evaluate.py --adapter outputs/mine --task_set folder --data_root images --output_dir outputs/eval
    python recipes/evaluate.py --adapter user/name --task_set office_home --bf16 --output_dir outputs/eval
    python recipes/evaluate.py --method zero_shot --task_set shapes --corruptions none --output_dir outputs/zero_shot
    accelerate launch recipes/evaluate.py --adapter outputs/mine --task_set shapes --output_dir outputs/eval
    python recipes/evaluate.py --adapter outputs/mine --task_set shapes --classes star,moon --output_dir outputs/eval
    python recipes/evaluate.py --adapter outputs/base --task_set shapes --split base_to_new --output_dir outputs/eval
    python recipes/evaluate.py --adapter outputs/mine --task_set shapes --cross_domain --output_dir outputs/eval

Writes evaluation.json and evaluation.md (accuracy, macro-F1 and calibration by task, mean, worst task and its most
frequent confusions, worst group where the data know groups, accuracy under common corruptions), figures of them and
manifest.json (which images were tested). An adapter is tested on the split that it was trained with, where it is of
this task set and no option asks for another one; and never on images that it was trained with. --split base_to_new
adds a table of base and new classes, --cross_domain one of every task's prompts on every task's images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from arguments import parse
from base_model import load_processor
from cli_errors import cli_errors, console
from evaluated_model import EvaluatedModelArguments, check_evaluated, load_evaluated
from idle import OF_EVALUATION, tell_idle
from model_arguments import ModelArguments
from other_classes import OtherClassesTrainer, base_and_new, by_task, class_list, cross_domain, predict
from output_folder import output_folder
from PIL import Image
from rich.progress import track
from task_data import DataArguments, trained_classes
from tested_images import check_output, load_tested, own_split
from transformers import ProgressCallback

from jscpt_peft.choices import check_choice
from jscpt_peft.data import ImageTaskDataset, TaskSet, image_transform, read_column, to_rgb, write_manifest
from jscpt_peft.data.base_to_new import images_of_classes
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
from jscpt_peft.evaluation.accuracy_tables import base_to_new_table, print_accuracies, write_accuracies
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
    classes: str | None = setting(
        None,
        "Choose among these classes instead of the task's own, with commas between, or a file with one per line; "
        "images of other classes are left out.",
    )
    cross_domain: bool = setting(False, "Also evaluate every task's prompts on every task's test images.")
    corruption_images: PositiveInt = setting(100, "Images of each task under each corruption and severity.")
    overwrite_output_dir: bool = setting(False, "Write into an output directory in use.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.chosen_corruptions:
            check_choice("corruptions", name, CORRUPTIONS)
        self.eval_strategy = "no"  # that of training, where a configuration file sets it
        self.load_best_model_at_end, self.report_to = False, []
        self.push_to_hub = False

    @property
    def chosen_corruptions(self) -> tuple[str, ...]:
        named = tuple(dict.fromkeys(name.strip() for name in self.corruptions.split(",")))
        return {("all",): CORRUPTIONS, ("none",): ()}.get(named, named)


def main(command_line: list[str] | None = None) -> None:
    kinds = (DataArguments, EvaluatedModelArguments, EvaluationArguments)
    data, model_arguments, arguments = parse(kinds, __doc__, command_line, shown=SHOWN, left_out=OF_TRAINING)
    with cli_errors(), output_folder(arguments.output_dir, data):
        without = set() if arguments.chosen_corruptions else {"corruption_images"}
        tell_idle(kinds, command_line, OF_EVALUATION | without)
        run(data, model_arguments, arguments)


def run(data: DataArguments, model_arguments: EvaluatedModelArguments, arguments: EvaluationArguments) -> None:
    check_evaluated(model_arguments)
    by_first_process(lambda: prepare_output(arguments))
    own = own_split(model_arguments.adapter, model_arguments.revision) if model_arguments.adapter is not None else None
    tested = load_tested(data, own, arguments.seed, console)
    task_set = tested.task_set
    by_first_process(lambda: check_output(arguments.output_dir, task_set.manifest))
    tasks = tested_tasks(data, arguments, task_set)
    known = trained_classes(task_set, data)
    evaluated = load_evaluated(model_arguments, known, any_classes=arguments.classes is not None)
    processor = load_processor(evaluated.source, evaluated.model.get_base_model())
    size = processor.crop_size["height"]
    transform = image_transform(size, processor.image_mean, processor.image_std, train=False)
    class_names, tests = {task.name: list(task.class_names) for task in tasks}, [task.test for task in tasks]

    console.print(
        f"{sum(map(len, tests))} test images of {len(tasks)} tasks, {tested} ...", markup=False, soft_wrap=True
    )
    if arguments.classes is None:
        trainer = JSCPTTrainer(evaluated.model, arguments, compute_metrics=None)
    else:
        trainer = OtherClassesTrainer(evaluated.model, arguments, class_names)
    make_images = partial(ImageTaskDataset, transform=transform, task_ids=evaluated.task_ids)
    predictions = predict(trainer, make_images(tests))
    tables = []
    if data.split == "base_to_new":
        found = base_and_new(evaluated.model, arguments, task_set, transform, evaluated.task_ids)
        table = base_to_new_table({"accuracy": found}, list(class_names))
        tables.append((table, "Base and new classes: test accuracy in %", "base_to_new", "task"))
    if arguments.cross_domain:
        table = cross_domain(evaluated.model, arguments, tasks, transform)
        tables.append((table, "Prompts of a task (row) on images of another: in %", "cross_domain", "prompts"))
    robustness, examples = None, []
    if arguments.chosen_corruptions:
        trainer.remove_callback(ProgressCallback)  # one line shows the progress of them all
        robustness = measure_robustness(trainer, tasks, predictions, make_images, size)
        first = to_rgb(tests[0][0]["image"])
        examples = corrupted_examples(first, arguments.chosen_corruptions, size, arguments.seed)
    if arguments.process_index == 0:
        evaluation = evaluate_predictions(
            predictions,
            class_names,
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
        for table, title, stem, first in tables:
            print_accuracies(table, title, console, first)
            written += write_accuracies(table, title, arguments.output_dir, stem, first)
        written += draw_evaluation(evaluation, arguments.output_dir, examples)
        written.append(Path(arguments.output_dir, MANIFEST_FILE))
        write_manifest(task_set.manifest, written[-1])
        console.print(f"Written to {arguments.output_dir}: {', '.join(path.name for path in written)}", soft_wrap=True)
    leave()


def prepare_output(arguments: EvaluationArguments) -> None:
    output = Path(arguments.output_dir)
    if output.is_dir() and any(output.iterdir()) and not arguments.overwrite_output_dir:
        raise ValueError(f"`output_dir` {output} is not empty: choose another, or pass --overwrite_output_dir.")


@dataclass(frozen=True)
class TestedTask:
    """A task's test images, with labels that number `class_names`."""

    name: str
    class_names: Sequence[str]
    test: Any


def tested_tasks(data: DataArguments, arguments: EvaluationArguments, task_set: TaskSet) -> list[TestedTask]:
    """The tasks with the classes that the arguments ask for."""
    if arguments.classes is None:
        return [TestedTask(task.name, task.class_names, task.test) for task in trained_classes(task_set, data)]
    if data.split != "all":
        raise ValueError(f"`classes` is {arguments.classes!r}, but `split` {data.split!r} says which: leave out one.")
    names = class_list(arguments.classes)
    tests = images_of_classes(task_set, dict.fromkeys(task_set.class_names, names))
    tasks = [TestedTask(task.name, names, test) for task, test in zip(task_set, tests, strict=True)]
    if not any(map(len, tests)):
        raise ValueError(f"`classes` {names} are none that task set {task_set.name!r} has test images of.")
    known = set().union(*task_set.class_names.values())
    if others := [name for name in names if name not in known]:
        console.print(f"Without test images, but to choose from: {', '.join(others)}", markup=False, soft_wrap=True)
    return tasks


# ---- predictions ----------------------------------------------------------------------------------------------------


def measure_robustness(
    trainer: JSCPTTrainer,
    tasks: Sequence[TestedTask],
    predictions: Predictions,
    make_images: Callable[..., ImageTaskDataset],
    size: int,
) -> Robustness:
    """Accuracies under the chosen corruptions, on images drawn by (seed, task, key); `predictions` are without."""
    arguments, names, tests = trainer.args, [task.name for task in tasks], [task.test for task in tasks]
    rows = [chosen_rows(task, arguments.corruption_images, arguments.seed) for task in tasks]
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


def chosen_rows(task: TestedTask, count: int, seed: int) -> np.ndarray:
    """Rows of the first `count` test images in the order in which `seed` draws them, ascending."""
    rows = {key: row for row, key in enumerate(read_column(task.test, "key"))}
    return np.sort([rows[key] for key in ranked(rows, seed, task.name)[:count]])


def corrupted_examples(
    image: Image.Image, corruptions: Sequence[str], size: int, seed: int
) -> list[tuple[str, list[Image.Image]]]:
    """The image as it is, and under every corruption in its severities."""
    examples = [("as it is", [image])]
    for name in corruptions:
        examples.append((name, [corrupt(image, name, severity, seed, size=size) for severity in SEVERITIES]))
    return examples


if __name__ == "__main__":
    main()
