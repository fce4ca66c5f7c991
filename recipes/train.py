"""Trains JSCPT on several tasks and compares it with zero-shot CLIP.

    accelerate launch recipes/train.py --task_set shapes --output_dir outputs/shapes
    accelerate launch recipes/train.py --task_set folder --data_root images --output_dir outputs/mine
    accelerate launch recipes/train.py --task_set office_home --output_dir outputs/office_home
    accelerate launch recipes/train.py --task_set food101,oxford_pets --data_root DATA --output_dir outputs/two
    accelerate launch recipes/train.py my.yaml --seed 2
    accelerate launch --config_file recipes/configs/accelerate/gpus.yaml recipes/train.py my.yaml

Writes to the output directory: the adapter, manifest.json (which image is in which split), results.json and
results.md (accuracy per task, before and after), scheduler_history.jsonl and figures of it. With
`--push_to_hub --hub_model_id user/name` all of it is published last. With
`--report_to tensorboard` (`pip install tensorboard`) also the curves of all logs: tensorboard --logdir outputs/shapes
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

from arguments import parse
from base_model import load_base
from choosing import choose
from class_templates import with_templates
from cli_errors import cli_errors, console, told_on_interrupt
from evaluated_model import zero_shot_model
from group_tasks import chosen_groups
from idle import idle_in_training, tell_idle
from launched import end_with_launcher
from model_arguments import ModelArguments, check_made_groups, model_config
from other_classes import base_and_new
from output_folder import output_folder
from outside import outside_trainer
from outside_methods import OUTSIDE
from peft import PeftModel, get_peft_model
from task_data import DataArguments, load_data, make_datasets
from transformers import CLIPImageProcessorPil, CLIPModel, PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import ImageTaskDataset, TaskSet, write_manifest
from jscpt_peft.data.base_to_new import base_classes
from jscpt_peft.data.manifest import MANIFEST_FILE
from jscpt_peft.evaluation import draw_figures, module_graph, print_results, results_table, write_results
from jscpt_peft.evaluation.accuracy_tables import base_to_new_table, print_accuracies, write_accuracies
from jscpt_peft.methods import check_training
from jscpt_peft.model.heads import FeatureModules
from jscpt_peft.scheduling import NEUTRAL_EFFECT
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.arguments import AUTO, SCHEDULER
from jscpt_peft.training.callbacks import StopOnInterrupt, TaskLines, TaskProgress
from jscpt_peft.training.checkpoint import remove_checkpoints
from jscpt_peft.training.distributed import by_first_process, leave
from jscpt_peft.training.output_lock import output_lock
from jscpt_peft.training.step_log import HISTORY_FILE

# What has been done when Ctrl-C comes after training.
UNMEASURED = "the adapter is saved in {}, its results are not, or not all of them: recipes/evaluate.py measures it."
UNPUBLISHED = "adapter and results are saved in {}, but perhaps not published."

BaseAndNew = tuple[list[float], list[float]]  # accuracies by task


def main(command_line: list[str] | None = None) -> None:
    end_with_launcher()
    kinds = (DataArguments, ModelArguments, JSCPTTrainingArguments)
    data, model_arguments, training = parse(kinds, __doc__, command_line)
    if model_arguments.method == AUTO:
        with cli_errors():
            chosen, reasons = choose(load_data(data, training.seed))
        for reason in reasons:
            console.print(f"auto: {reason}", highlight=False, soft_wrap=True)
        data, model_arguments, training = parse(kinds, __doc__, command_line, chosen=chosen)
    with cli_errors(), output_folder(training.output_dir, data):
        tell_idle(kinds, command_line, idle_in_training(data, model_arguments, training))
        run(data, model_arguments, training)


def run(data: DataArguments, model_arguments: ModelArguments, training: JSCPTTrainingArguments) -> None:
    if model_arguments.method in OUTSIDE:
        check_outside_run(data, model_arguments.method, training)
    check_method(model_arguments, training)
    check_publishing(training)
    resume = by_first_process(lambda: prepare_output(training))
    manifest = Path(training.output_dir, MANIFEST_FILE)
    if resume and data.task_set != "shapes" and data.manifest is None and manifest.exists():
        # Go on with the run's own split, whatever has come into the folder or repository since.
        data = replace(data, manifest=str(manifest), shots=None, train_fraction=None)
    whole = load_data(data, training.seed)
    task_set = base_classes(whole) if data.split == "base_to_new" else whole
    source, clip, processor = load_base(model_arguments.model_name_or_path)
    datasets = make_datasets(task_set, processor, data, training.seed)

    if model_arguments.method in OUTSIDE:
        run_outside(clip, source, task_set, datasets, model_arguments, training)
        return
    config = method_config(clip, source, task_set, datasets["train"], model_arguments, training, bool(resume))
    new = new_classes_in(data, whole, datasets["test"], training)
    zero_shot, on_new = evaluate_zero_shot(clip, source, task_set, datasets["test"], training, new)
    model = get_peft_model(clip, config)
    trainer = make_trainer(model, training, datasets, processor)
    if trainer.is_world_process_zero():
        if not resume:
            remove_checkpoints(Path(training.output_dir))  # of a run that is overwritten
        model.print_trainable_parameters()
        write_manifest(task_set.manifest, manifest)
    train(trainer, task_set, resume)
    trainer.save_model(_internal_call=True)  # with --push_to_hub it would publish: that comes last, with the results
    with told_on_interrupt(UNMEASURED.format(training.output_dir)):
        trained = trainer.evaluate(datasets["test"], metric_key_prefix="test")
        if new is not None:
            on_new["trained"] = new(model)
        if trainer.is_world_process_zero():
            write_reports(zero_shot, trained, on_new, task_set, trainer)
    with told_on_interrupt(UNPUBLISHED.format(training.output_dir)):
        if training.push_to_hub:
            console.print(f"Published: {trainer.push_to_hub()}", highlight=False, soft_wrap=True)
    leave()


def check_outside_run(data: DataArguments, method: str, training: JSCPTTrainingArguments) -> None:
    """Raises a `ValueError` where a method that is none of the library's meets what is for those alone."""
    asked = {name: getattr(training, name) for name in ("resume_from_checkpoint", "push_to_hub")}
    asked |= {"split": data.split != "all" and data.split}
    asked |= {"weighting": training.weighting not in (SCHEDULER, "uniform") and training.weighting}
    asked |= {name: getattr(training, name) for name in ("task_prior", "weigh_own_steps", "compile_blocks")}
    asked |= {"cuda_graphs": training.cuda_graphs != "off" and training.cuda_graphs}
    for name, value in asked.items():
        if value:
            raise ValueError(f"`{name}` {value!r} does not go with method {method!r}: leave it out.")


def run_outside(
    clip: CLIPModel,
    source: str,
    task_set: TaskSet,
    datasets: dict[str, ImageTaskDataset],
    model_arguments: ModelArguments,
    training: JSCPTTrainingArguments,
) -> None:
    """The same for a method that is none of the library's: no checkpoint, no adapter and no card, but the table."""
    training.save_strategy, training.load_best_model_at_end = SaveStrategy.NO, False
    zero_shot, _ = evaluate_zero_shot(clip, source, task_set, datasets["test"], training, None)
    rank = model_arguments.lora_rank
    trainer = outside_trainer(model_arguments.method, clip, source, task_set, datasets, training, rank)
    trainer.train()
    trainer.save_model()
    with told_on_interrupt(f"the weights are saved in {training.output_dir}, but not measured."):
        trained = trainer.evaluate(datasets["test"], metric_key_prefix="test")
    if trainer.is_world_process_zero():
        learned, known = trainer.model.get_nb_trainable_parameters()
        console.print(f"trainable params: {learned:,d} || all params: {known:,d}")
        write_manifest(task_set.manifest, Path(training.output_dir, MANIFEST_FILE))
        table = results_table(zero_shot, trained, list(task_set.class_names), prefix="test_")
        title = f"{task_set.name}, {model_arguments.method}: test accuracy in %"
        print_results(table, title, console)
        write_results(table, training.output_dir, title)
    leave()


def check_method(model_arguments: ModelArguments, training: JSCPTTrainingArguments) -> None:
    """Raises a `ValueError` where an option would make another method of it, or makes groups that it has not."""
    if model_arguments.method == AUTO:  # `main` has put what it chose in its place
        raise ValueError("`method` 'auto' chooses for a training with recipes/train.py: here, name one.")
    if model_arguments.method not in (None, *OUTSIDE):
        check_training(model_arguments.method, training)
    check_made_groups(model_arguments, made=model_arguments.groups == AUTO)


def method_config(
    clip: CLIPModel,
    source: str,
    task_set: TaskSet,
    images: ImageTaskDataset,
    model_arguments: ModelArguments,
    training: JSCPTTrainingArguments,
    resume: bool,
) -> JSCPTConfig:
    """The configuration for a task set, with the templates and, by its training images, the groups asked for."""
    model_arguments = with_templates(model_arguments, task_set)
    groups = chosen_groups(clip, source, images, model_arguments, training, resume)
    return model_config(model_arguments, task_set.class_names, source, training.seed, groups)


def make_trainer(
    model: PeftModel,
    training: JSCPTTrainingArguments,
    datasets: dict[str, ImageTaskDataset],
    processor: CLIPImageProcessorPil,
) -> JSCPTTrainer:
    """The trainer of a model on the splits of a task set."""
    return JSCPTTrainer(
        model,
        training,
        train_dataset=datasets["train"],
        dev_dataset=datasets["dev"],
        eval_dataset=datasets["validation"],
        processing_class=processor,
    )


def check_publishing(training: JSCPTTrainingArguments) -> None:
    """Raises a `ValueError` where it is said how to publish, and nothing is published."""
    for name in ("hub_model_id", "hub_private_repo", "hub_revision"):
        value = getattr(training, name)
        if value is not None and not training.push_to_hub:
            raise ValueError(f"`{name}` is {value!r}, which needs `push_to_hub`: add that, or leave it out.")


def prepare_output(training: JSCPTTrainingArguments) -> str | bool | None:
    """What to resume from, `True` for the last valid checkpoint; refuses a directory that holds another run."""
    output = Path(training.output_dir)
    resume: str | bool | None = training.resume_from_checkpoint or None  # a YAML file's `false`
    if resume in ("last", "True", "true"):
        if not (output.is_dir() and any(output.glob(f"*{PREFIX_CHECKPOINT_DIR}-*"))):
            raise ValueError(f"`resume_from_checkpoint` is 'last', but `output_dir` {output} holds no checkpoint.")
        resume = True
    if isinstance(resume, str) and not os.path.isdir(resume):
        raise ValueError(f"`resume_from_checkpoint` {resume!r} is no folder: name a checkpoint's, or `last`.")
    if resume is None and output.is_dir() and any(output.iterdir()) and not training.overwrite_output_dir:
        raise ValueError(
            f"`output_dir` {output} is not empty: choose another, pass --overwrite_output_dir, or go on with "
            "--resume_from_checkpoint last."
        )
    with output_lock(output):  # before anything of an earlier run is removed
        return resume


def unreported(training: JSCPTTrainingArguments) -> JSCPTTrainingArguments:
    """The same for an evaluation that trackers would take for a run of its own."""
    arguments = copy(training)
    arguments.report_to = []
    return arguments


def new_classes_in(
    data: DataArguments, whole: TaskSet, test: ImageTaskDataset, training: JSCPTTrainingArguments
) -> Callable[[PeftModel], BaseAndNew] | None:
    """What measures a model on base and new classes; `None` where all are trained."""
    if data.split != "base_to_new":
        return None
    options = unreported(training), whole, test.transform, list(range(len(whole)))
    return lambda model: base_and_new(model, *options)


def evaluate_zero_shot(
    clip: CLIPModel,
    source: str,
    task_set: TaskSet,
    test: ImageTaskDataset,
    training: JSCPTTrainingArguments,
    new: Callable[[PeftModel], BaseAndNew] | None,
) -> tuple[dict[str, float], dict[str, BaseAndNew]]:
    """Metrics on the test images, and accuracies on base and new classes where there are such."""
    model = zero_shot_model(clip, source, task_set)
    metrics = JSCPTTrainer(model, unreported(training), eval_dataset=test).evaluate(metric_key_prefix="test")
    on_new = {} if new is None else {"zero-shot": new(model)}
    model.unload()
    return metrics, on_new


def train(trainer: JSCPTTrainer, task_set: TaskSet, resume: str | bool | None) -> None:
    """Trains with a line per task on the terminal; Ctrl-C saves a checkpoint and ends the program."""
    interrupt = StopOnInterrupt(trainer)
    for plain in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(plain)
    trainer.add_callback(interrupt)
    lines = TaskLines if trainer.args.disable_tqdm else TaskProgress
    trainer.add_callback(lines(list(task_set.class_names)))
    trainer.train(resume_from_checkpoint=resume)
    if not interrupt.interrupted:
        return
    step, output = trainer.state.global_step, trainer.args.output_dir
    if trainer.unsaved_error is not None:
        raise OSError(f"interrupted, and step {step} is not saved: {trainer.unsaved_error}")
    console.print(
        f"Interrupted; step {step} is saved in {output}. Go on with the same command and --resume_from_checkpoint last"
    )
    leave()
    sys.exit(130)


def write_reports(
    zero_shot: dict[str, float],
    trained: dict[str, float],
    on_new: dict[str, BaseAndNew],
    task_set: TaskSet,
    trainer: JSCPTTrainer,
) -> None:
    """Tables, figures and the card."""
    training = trainer.args
    try:
        report(zero_shot, trained, task_set, training, trainer.model)
        if on_new:
            report_base_to_new(on_new, task_set, training)
        trainer.create_model_card()
    except OSError as error:
        raise OSError(
            f"the results could not all be written to {training.output_dir} ({error}): adapter and history are "
            "there. Make room on the disk, and recipes/evaluate.py measures it again."
        ) from error


def report(
    zero_shot: dict[str, float],
    trained: dict[str, float],
    task_set: TaskSet,
    training: JSCPTTrainingArguments,
    model: PeftModel,
) -> None:
    """The results table on the terminal, as JSON and Markdown, and the figures."""
    table = results_table(zero_shot, trained, list(task_set.class_names), prefix="test_")
    title = f"{task_set.name}: test accuracy in %"
    print_results(table, title, console)
    written = write_results(table, training.output_dir, title)
    history = Path(training.output_dir, HISTORY_FILE)
    written += draw_figures(history, training.output_dir, NEUTRAL_EFFECT[training.causal_effect])
    Path(training.output_dir, module_graph.FILE).unlink(missing_ok=True)  # of an earlier run
    if isinstance(model.task_adapter.head, FeatureModules):
        graph = model.task_adapter.head.graph().cpu().numpy()
        written += module_graph.draw_module_graph(graph, list(task_set.class_names), training.output_dir)
    names = ", ".join(path.name for path in written)
    console.print(f"Adapter and results: {training.output_dir} ({names})", markup=False)


def report_base_to_new(found: dict[str, BaseAndNew], task_set: TaskSet, training: JSCPTTrainingArguments) -> None:
    """The table of base and new classes on the terminal, as JSON and Markdown."""
    table = base_to_new_table(found, list(task_set.class_names))
    title = f"{task_set.name}, base and new classes: test accuracy in %"
    print_accuracies(table, title, console)
    write_accuracies(table, title, training.output_dir, "base_to_new")


if __name__ == "__main__":
    main()
