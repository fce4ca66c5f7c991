"""What trainings are made of, by their arguments: checked first, then the configuration and the trainer."""

from __future__ import annotations

import os.path
from pathlib import Path

from class_templates import with_templates
from group_tasks import chosen_groups
from model_arguments import ModelArguments, check_made_groups, model_config
from outside_methods import OUTSIDE
from peft import PeftModel
from run_material import Material
from task_data import DataArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from jscpt_peft import JSCPTConfig
from jscpt_peft.methods import check_training
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.arguments import AUTO, SCHEDULER
from jscpt_peft.training.output_lock import output_lock


def check_arguments(data: DataArguments, model_arguments: ModelArguments, training: JSCPTTrainingArguments) -> None:
    """Raises a `ValueError` where arguments of recipes/train.py do not go together."""
    if model_arguments.method in OUTSIDE:
        check_outside_run(data, model_arguments.method, training)
    check_method(model_arguments, training)
    check_publishing(training)


def check_method(model_arguments: ModelArguments, training: JSCPTTrainingArguments) -> None:
    """Raises a `ValueError` where an option would make another method of it, or makes groups that it has not."""
    if model_arguments.method == AUTO:  # recipes/train.py has put what it chose in its place
        raise ValueError("`method` 'auto' chooses for a training with recipes/train.py: here, name one.")
    if model_arguments.method not in (None, *OUTSIDE):
        check_training(model_arguments.method, training)
    check_made_groups(model_arguments, made=model_arguments.groups == AUTO)


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


def method_config(
    material: Material, model_arguments: ModelArguments, training: JSCPTTrainingArguments, resume: bool
) -> JSCPTConfig:
    """The configuration for a task set, with the templates and, by its training images, the groups asked for."""
    task_set = material.task_set
    model_arguments = with_templates(model_arguments, task_set)
    groups = chosen_groups(material, model_arguments, training, resume)
    return model_config(model_arguments, task_set.class_names, material.source, training.seed, groups)


def make_trainer(model: PeftModel, material: Material, training: JSCPTTrainingArguments) -> JSCPTTrainer:
    """The trainer of a model on the splits of a task set."""
    return JSCPTTrainer(
        model,
        training,
        train_dataset=material.datasets["train"],
        dev_dataset=material.datasets["dev"],
        eval_dataset=material.datasets["validation"],
        processing_class=material.processor,
    )
