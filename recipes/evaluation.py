"""Evaluates a trained adapter, or zero-shot CLIP, on the test images of any task set.

    python recipes/evaluate.py --adapter outputs/mine --task_set folder --data_root pictures --output_dir outputs/eval
    python recipes/evaluate.py --adapter user/name --task_set office_home --bf16 --output_dir outputs/eval
    python recipes/evaluate.py --method zero_shot --task_set shapes --corruptions none --output_dir outputs/zero_shot
    accelerate launch recipes/evaluate.py --adapter outputs/mine --task_set shapes --output_dir outputs/eval

Writes evaluation.json and evaluation.md (accuracy, macro-F1 and calibration by task, mean, worst task and its most
frequent confusions, worst group where the data know groups, accuracy under common corruptions) and pictures of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml
from adapter import adapter_config, load_adapter
from arguments import DataArguments, ModelArguments, own_configuration, parse
from peft import PeftModel
from PIL import Image
from rich.console import Console
from rich.progress import track
from told_errors import one_voice
from train import load_data
from transformers import CLIPImageProcessorPil, CLIPModel, ProgressCallback
from zero_shot import zero_shot_model

from jscpt_peft.assets import TINY_CLIP
from jscpt_peft.choices import check_choice, nearest
from jscpt_peft.data import ImageTaskDataset, Task, TaskSet, image_transform, read_column, to_rgb
from jscpt_peft.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from jscpt_peft.data.splits import ranked
from jscpt_peft.evaluation import (
    Answers,
    Robustness,
    draw_evaluation,
    evaluate_answers,
    print_evaluation,
    write_evaluation,
)
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.distributed import by_first_process, leave

console = Console()
# PEFT asks transformers for a property by its old name; nothing that a user of these recipes could change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)

SHOWN = {"output_dir", "seed", "bf16", "use_cpu", "per_device_eval_batch_size", "dataloader_num_workers"}
# What a configuration file says about training an adapter. A trained one knows it, its base model included.
OF_TRAINING = set(vars(ModelArguments)["__annotations__"])


@dataclass
class SubjectArguments:
    """What is evaluated."""

    _argument_group_name: ClassVar[str] = "what is evaluated"
    adapter: str | None = field(default=None, metadata={"help": "Folder or Hub id of a trained adapter."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the adapter on the Hub."})
    method: str = field(
        default="adapter", metadata={"help": "adapter, or zero_shot: the base model under the tasks' templates."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A CLIPModel: Hub id or folder. Default: the one the adapter was trained on; for zero_shot the "
            "one that the task set is trained with, or the small CLIP in the package."
        },
    )


@dataclass
class EvaluationArguments(JSCPTTrainingArguments):
    """How it is evaluated; of the arguments of training, those of batches and devices count."""

    _argument_group_name: ClassVar[str] = "evaluation"
    corruptions: str = field(
        default="all", metadata={"help": f"all, none, or some with commas between: {', '.join(CORRUPTIONS)}."}
    )
    corruption_images: int = field(
        default=100, metadata={"help": "Images of each task under each corruption and severity."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into an output directory in use."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corruption_images < 1:
            raise ValueError(f"`corruption_images` must be at least 1, got {self.corruption_images}.")
        for name in self.chosen_corruptions:
            check_choice("corruptions", name, CORRUPTIONS)
        self.eval_strategy = "no"  # that of training, where a configuration file sets it
        self.report_to = []
        self.push_to_hub = False

    @property
    def chosen_corruptions(self) -> tuple[str, ...]:
        named = tuple(dict.fromkeys(name.strip() for name in self.corruptions.split(",")))
        return {("all",): CORRUPTIONS, ("none",): ()}.get(named, named)


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        model: it.
        source: its base model.
        task_ids: `[N]` where the task set's tasks stand among the model's.
    """

    model: PeftModel
    source: str
    task_ids: list[int]


def main(command_line: list[str] | None = None) -> None:
    kinds = (DataArguments, SubjectArguments, EvaluationArguments)
    data, subject, arguments = parse(kinds, __doc__, command_line, shown=SHOWN, left_out=OF_TRAINING)
    with one_voice(console):
        run(data, subject, arguments)


def run(data: DataArguments, arguments: SubjectArguments, training: EvaluationArguments) -> None:
    check_choice("method", arguments.method, METHODS)
    by_first_process(lambda: prepare_output(training))
    task_set = load_data(data, training.seed)
    subject = METHODS[arguments.method](arguments, task_set)
    processor = CLIPImageProcessorPil.from_pretrained(subject.source)
    size = processor.crop_size["height"]
    transform = image_transform(size, processor.image_mean, processor.image_std, train=False)
    tests = task_set.split("test")

    console.print(f"{sum(map(len, tests))} test images of {len(task_set)} tasks ...")
    trainer = JSCPTTrainer(subject.model, training, compute_metrics=None)
    make_images = partial(ImageTaskDataset, transform=transform, task_ids=subject.task_ids)
    answers = answer(trainer, make_images(tests))
    robustness, examples = None, []
    if training.chosen_corruptions:
        trainer.remove_callback(ProgressCallback)  # one line shows the progress of them all
        robustness = measure_robustness(trainer, task_set, answers, make_images, size)
        first = to_rgb(tests[0][0]["image"])
        examples = corrupted_examples(first, training.chosen_corruptions, size, training.seed)
    if training.process_index == 0:
        evaluation = evaluate_answers(
            answers,
            task_set.class_names,
            subject={
                "method": arguments.method,
                "adapter": arguments.adapter,
                "base_model": subject.source,
                "data_root": data.data_root,
                "seed": training.seed,
            },
            task_set=task_set.name,
            robustness=robustness,
        )
        print_evaluation(evaluation, console)
        written = write_evaluation(evaluation, training.output_dir)
        written += draw_evaluation(evaluation, training.output_dir, examples)
        console.print(f"Written to {training.output_dir}: {', '.join(path.name for path in written)}", soft_wrap=True)
    leave()


def prepare_output(training: EvaluationArguments) -> None:
    output = Path(training.output_dir)
    if output.is_dir() and any(output.iterdir()) and not training.overwrite_output_dir:
        raise ValueError(f"`output_dir` {output} is not empty: choose another, or pass --overwrite_output_dir.")
    output.mkdir(parents=True, exist_ok=True)


# ---- what is evaluated ----------------------------------------------------------------------------------------------


def load_adapted(arguments: SubjectArguments, task_set: TaskSet) -> Subject:
    if arguments.adapter is None:
        raise ValueError("`adapter` is missing: name the folder or Hub id of one, or pass --method zero_shot.")
    config = adapter_config(arguments.adapter, arguments.revision)
    task_ids = known_tasks(arguments.adapter, config.tasks, task_set)
    model, source = load_adapter(config, arguments.adapter, arguments.revision, arguments.model_name_or_path)
    return Subject(model, source, task_ids)


def load_zero_shot(arguments: SubjectArguments, task_set: TaskSet) -> Subject:
    if arguments.adapter is not None:
        raise ValueError(
            f"`adapter` is {arguments.adapter!r}, but --method zero_shot has none: leave out one of them."
        )
    source = arguments.model_name_or_path or default_model(task_set.name)
    clip = CLIPModel.from_pretrained(source, dtype="float32")
    return Subject(zero_shot_model(clip, source, task_set), source, list(range(len(task_set))))


def default_model(task_set: str) -> str:
    """The base model that a task set is trained with, if its own configuration names one; else the package's."""
    own = own_configuration(task_set)
    settings = yaml.safe_load(own.read_text(encoding="utf-8")) if own.exists() else {}
    return settings.get("model_name_or_path", str(TINY_CLIP))


METHODS: dict[str, Callable[[SubjectArguments, TaskSet], Subject]] = {
    "adapter": load_adapted,
    "zero_shot": load_zero_shot,
}


def known_tasks(adapter: str, known: dict[str, list[str]], task_set: TaskSet) -> list[int]:
    """Where the task set's tasks stand among those of an adapter, found by name, `[N]`.

    Raises:
        ValueError: the adapter does not know a task, or knows it with other classes or in another order.
    """
    for name, class_names in task_set.class_names.items():
        if name not in known:
            raise ValueError(
                f"`adapter` {adapter} has no task {name!r}: its tasks are {', '.join(known)}.{nearest(name, known)}"
            )
        for label, (here, there) in enumerate(zip_longest(class_names, known[name])):
            if here != there:
                raise ValueError(
                    f"class {label} of task {name!r} is {_named(here)} in task set {task_set.name!r} and "
                    f"{_named(there)} in `adapter` {adapter}: evaluate it on the classes it was trained for."
                )
    return [list(known).index(name) for name in task_set.class_names]


def _named(class_name: str | None) -> str:
    return "missing" if class_name is None else repr(class_name)


# ---- answers --------------------------------------------------------------------------------------------------------


def answer(trainer: JSCPTTrainer, images: ImageTaskDataset) -> Answers:
    """The model's answers to all images, in their order; `Trainer` shares the work among processes."""
    prediction = trainer.predict(images, metric_key_prefix="test")
    labels, _, *groups = prediction.label_ids
    task_ids = np.repeat(np.arange(len(images.datasets)), [len(task) for task in images.datasets])
    return Answers.from_logits(prediction.predictions, labels, task_ids, groups[0] if groups else None)


def measure_robustness(
    trainer: JSCPTTrainer,
    task_set: TaskSet,
    answers: Answers,
    make_images: Callable[..., ImageTaskDataset],
    size: int,
) -> Robustness:
    """Accuracies under the chosen corruptions, on images drawn by (seed, task, key); `answers` are the clean ones."""
    arguments, names, tests = trainer.args, list(task_set.class_names), task_set.split("test")
    rows = [chosen_rows(task, arguments.corruption_images, arguments.seed) for task in task_set]
    chosen = [test.select(each) for test, each in zip(tests, rows, strict=True)]
    starts = np.cumsum([0, *map(len, tests)])[:-1]
    clean = answers.chosen(np.concatenate([start + each for start, each in zip(starts, rows, strict=True)]))
    conditions = [(name, severity) for name in arguments.chosen_corruptions for severity in SEVERITIES]
    accuracies = []
    for name, severity in track(conditions, "corruptions", console=console, transient=True, disable=console.quiet):
        corrupted = partial(corrupt, corruption=name, severity=severity, seed=arguments.seed, size=size)
        accuracies.append(by_task(answer(trainer, make_images(chosen, corrupt=corrupted)), names))
    return Robustness(
        images_per_task=arguments.corruption_images,
        task_names=tuple(names),
        corruptions=arguments.chosen_corruptions,
        severities=SEVERITIES,
        clean=np.array(by_task(clean, names)),
        accuracies=np.array(accuracies).reshape(-1, len(SEVERITIES), len(names)),
    )


def chosen_rows(task: Task, count: int, seed: int) -> np.ndarray:
    """Rows of the first `count` test images in the order in which `seed` draws them, ascending."""
    rows = {key: row for row, key in enumerate(read_column(task.test, "key"))}
    return np.sort([rows[key] for key in ranked(rows, seed, task.name)[:count]])


def by_task(answers: Answers, names: list[str]) -> list[float]:
    accuracies = answers.accuracies(names)
    return [accuracies[f"accuracy/{name}"] for name in names]


def corrupted_examples(
    image: Image.Image, corruptions: Sequence[str], size: int, seed: int
) -> list[tuple[str, list[Image.Image]]]:
    """The picture as it is, and under every corruption in its severities."""

    def severities(name: str) -> list[Image.Image]:
        return [corrupt(image, name, severity, seed, size=size) for severity in SEVERITIES]

    return [("as it is", [image]), *((name, severities(name)) for name in corruptions)]
