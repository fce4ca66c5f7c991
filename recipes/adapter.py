"""A trained adapter on its base model, from a folder or the Hub, with errors of one sentence."""

from __future__ import annotations

import argparse
import os.path
from pathlib import PureWindowsPath

from base_model import load_clip, load_processor
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from model_arguments import BUNDLED, base_source
from peft import PeftModel
from peft.utils import CONFIG_NAME
from task_data import ASSETS
from transformers import CLIPImageProcessorPil

from jscpt_peft import JSCPTConfig  # importing jscpt_peft registers the PEFT type
from jscpt_peft.serving.base_names import is_hub_id


def add_adapter_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `load_for_task` reads."""
    parser.add_argument("--adapter", required=True, help="folder or Hub id of a trained adapter")
    parser.add_argument("--revision", help="branch, tag or commit of the adapter on the Hub; default: main")
    parser.add_argument("--task", help="the adapter's task; may be left out where there is one only")
    parser.add_argument("--model_name_or_path", help="base model; default: the one that the adapter was trained on")


def load_for_task(arguments: argparse.Namespace) -> tuple[PeftModel, str, CLIPImageProcessorPil]:
    """The adapted model, the task that was asked for, or the only one, and the image processor of the base.

    Raises:
        ValueError: no task was asked for, and there are several; or as `load_adapter`.
    """
    config, task = adapter_config(arguments.adapter, arguments.revision), arguments.task
    if task is None and len(config.tasks) > 1:
        raise ValueError(f"`--task` is missing: name one of {', '.join(config.tasks)}.")
    model, source = load_adapter(config, arguments.adapter, arguments.revision, arguments.model_name_or_path)
    option = base_option(arguments.model_name_or_path, arguments.adapter)
    processor = load_processor(source, model.get_base_model(), option)
    return model, next(iter(config.tasks)) if task is None else task, processor


def adapter_config(adapter: str, revision: str | None) -> JSCPTConfig:
    """Configuration of an adapter in a folder or on the Hub.

    Raises:
        ValueError: there is none, or it is no JSCPT adapter's.
    """
    if os.path.isfile(adapter):
        raise ValueError(f"`adapter` {adapter} is a file: name the folder that it is in.")
    if os.path.isdir(adapter) and not os.path.isfile(os.path.join(adapter, CONFIG_NAME)):
        raise ValueError(f"`adapter`: Can't find '{CONFIG_NAME}' at {adapter!r}, or it is no file.")
    if os.path.isdir(adapter) and revision is not None:
        raise ValueError(f"`revision` {revision!r} says nothing of the folder `adapter` {adapter}: leave it out.")
    try:
        return JSCPTConfig.from_pretrained(adapter, revision=revision)
    except ValueError as error:
        # a cause from the Hub says more than "Can't find"
        said = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError | LocalEntryNotFoundError) else error
        raise ValueError(f"`adapter` {adapter}: {said}") from error


def base_of(config: JSCPTConfig, adapter: str) -> str:
    """Name or path of the model that an adapter was trained on.

    A small CLIP of the recipes is stored as its path on the machine of the training: here it has another.

    Raises:
        ValueError: it is not named, or is a folder that is not there.
    """
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"`adapter` {adapter} does not name its base model: give --model_name_or_path.")
    if os.path.exists(base) or is_hub_id(base):
        return base
    folder, name = ("", *PureWindowsPath(base).parts)[-2:]  # takes both kinds of slashes
    if folder == ASSETS.name and name in BUNDLED:
        return base_source(name)
    raise ValueError(
        f"`adapter` {adapter} was trained on the model in {base}, which is not on this machine: say where it is with "
        "--model_name_or_path."
    )


def load_adapter(
    config: JSCPTConfig, adapter: str, revision: str | None = None, base: str | None = None
) -> tuple[PeftModel, str]:
    """The adapted model, and the name or path of its base: `base`, or else the one that it was trained on.

    Raises:
        ValueError: the weights are not those that the configuration tells of, or do not fit the base.
        OSError: something cannot be read.
    """
    base = base and base_source(base)
    source = base or base_of(config, adapter)
    clip = load_clip(source, base_option(base, adapter))
    return PeftModel.from_pretrained(clip, adapter, revision=revision), source


def base_option(base: str | None, adapter: str) -> str:
    """What named the base model, for messages."""
    return "`model_name_or_path`" if base else f"`adapter` {adapter}: its base model"
