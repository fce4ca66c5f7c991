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

import sys
from copy import copy
from dataclasses import replace
from pathlib import Path

from arguments import parse
from choosing import choose
from cli_errors import cli_errors, console, told_on_interrupt
from evaluated_model import zero_shot_model
from idle import idle_in_training, tell_idle
from launched import end_with_launcher
from model_arguments import ModelArguments
from other_classes import BaseAndNew, base_and_new
from output_folder import output_folder
from outside import outside_trainer
from outside_methods import OUTSIDE
from peft import PeftModel, get_peft_model
from run_material import Material, load_material
from task_data import DataArguments, load_data
from training_results import report_accuracies, write_reports
from training_setup import check_arguments, make_trainer, method_config, prepare_output
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy

from jscpt_peft.data import write_manifest
from jscpt_peft.data.manifest import MANIFEST_FILE
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.arguments import AUTO
from jscpt_peft.training.callbacks import StopOnInterrupt, TaskLines, TaskProgress
from jscpt_peft.training.checkpoint import remove_checkpoints
from jscpt_peft.training.distributed import by_first_process, leave

# What has been done when Ctrl-C comes after training.
UNMEASURED = "the adapter is saved in {}, its results are not, or not all of them: recipes/evaluate.py measures it."
UNPUBLISHED = "adapter and results are saved in {}, but perhaps not published."


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
    check_arguments(data, model_arguments, training)
    resume = by_first_process(lambda: prepare_output(training))
    manifest = Path(training.output_dir, MANIFEST_FILE)
    if resume and data.task_set != "shapes" and data.manifest is None and manifest.exists():
        # Go on with the run's own split, whatever has come into the folder or repository since.
        data = replace(data, manifest=str(manifest), shots=None, train_fraction=None)
    material = load_material(data, model_arguments.model_name_or_path, training.seed)
    if model_arguments.method in OUTSIDE:
        run_outside(material, model_arguments, training)
        return
    config = method_config(material, model_arguments, training, bool(resume))
    zero_shot, on_new = evaluate_zero_shot(material, training)
    model = get_peft_model(material.clip, config)
    trainer = make_trainer(model, material, training)
    if trainer.is_world_process_zero():
        if not resume:
            remove_checkpoints(Path(training.output_dir))  # of a run that is overwritten
        model.print_trainable_parameters()
        write_manifest(material.task_set.manifest, manifest)
    train(trainer, resume)
    trainer.save_model(_internal_call=True)  # with --push_to_hub it would publish: that comes last, with the results
    with told_on_interrupt(UNMEASURED.format(training.output_dir)):
        trained = trainer.evaluate(material.datasets["test"], metric_key_prefix="test")
        if material.has_new_classes:
            on_new["trained"] = on_base_and_new(model, material, training)
        if trainer.is_world_process_zero():
            write_reports(zero_shot, trained, on_new, material.task_set.name, trainer)
    with told_on_interrupt(UNPUBLISHED.format(training.output_dir)):
        if training.push_to_hub:
            console.print(f"Published: {trainer.push_to_hub()}", highlight=False, soft_wrap=True)
    leave()


def run_outside(material: Material, model_arguments: ModelArguments, training: JSCPTTrainingArguments) -> None:
    """The same for a method that is none of the library's: no checkpoint, no adapter and no card, but the table."""
    training.save_strategy, training.load_best_model_at_end = SaveStrategy.NO, False
    zero_shot, _ = evaluate_zero_shot(material, training)
    trainer = outside_trainer(model_arguments, material, training)
    trainer.train()
    trainer.save_model()
    with told_on_interrupt(f"the weights are saved in {training.output_dir}, but not measured."):
        trained = trainer.evaluate(material.datasets["test"], metric_key_prefix="test")
    if trainer.is_world_process_zero():
        learned, known = trainer.model.get_nb_trainable_parameters()
        console.print(f"trainable params: {learned:,d} || all params: {known:,d}")
        write_manifest(material.task_set.manifest, Path(training.output_dir, MANIFEST_FILE))
        report_accuracies(zero_shot, trained, f"{material.task_set.name}, {model_arguments.method}", trainer)
    leave()


def unreported(training: JSCPTTrainingArguments) -> JSCPTTrainingArguments:
    """The same for an evaluation that trackers would take for a run of its own."""
    arguments = copy(training)
    arguments.report_to = []
    return arguments


def on_base_and_new(model: PeftModel, material: Material, training: JSCPTTrainingArguments) -> BaseAndNew:
    whole, transform = material.whole, material.datasets["test"].transform
    return base_and_new(model, unreported(training), whole, transform, list(range(len(whole))))


def evaluate_zero_shot(
    material: Material, training: JSCPTTrainingArguments
) -> tuple[dict[str, float], dict[str, BaseAndNew]]:
    """Metrics on the test images, and accuracies on base and new classes where there are such."""
    model, test = zero_shot_model(material.clip, material.source, material.task_set), material.datasets["test"]
    metrics = JSCPTTrainer(model, unreported(training), eval_dataset=test).evaluate(metric_key_prefix="test")
    on_new = {"zero-shot": on_base_and_new(model, material, training)} if material.has_new_classes else {}
    model.unload()
    return metrics, on_new


def train(trainer: JSCPTTrainer, resume: str | bool | None) -> None:
    """Trains with a line per task on the terminal; Ctrl-C saves a checkpoint and ends the program."""
    interrupt = StopOnInterrupt(trainer)
    for plain in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(plain)
    trainer.add_callback(interrupt)
    lines = TaskLines if trainer.args.disable_tqdm else TaskProgress
    trainer.add_callback(lines(trainer.task_names))
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


if __name__ == "__main__":
    main()
