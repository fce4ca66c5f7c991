"""`JSCPTPeftModel`: the `PeftModel` that a user holds, with the methods of a `JSCPTModel` and with a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import logging

from .methods import METHODS
from .model import JSCPTModel
from .model.adapter_file import DIGEST_FILE, check_digest, check_sound, write_digest
from .model.losses import JSCPTOutput
from .settings import path_given

logger = logging.get_logger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _of_tuner(
    method: Callable[Concatenate[JSCPTModel, Parameters], Result],
) -> Callable[Concatenate[JSCPTPeftModel, Parameters], Result]:
    """A method that calls the tuner's: seen by `dir()`, by `help()` and by type checkers."""

    @wraps(method)
    def call(self: JSCPTPeftModel, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return method(self.base_model, *args, **kwargs)

    return call


class JSCPTPeftModel(PeftModel):
    """A base model under a JSCPT adapter: what `get_peft_model` and `PeftModel.from_pretrained` return.

    `save_pretrained` and `push_to_hub` write a card beside the adapter. A card that somebody has written or edited is
    left alone, in a folder and on the Hub.
    """

    classify = _of_tuner(JSCPTModel.classify)
    class_embeds = _of_tuner(JSCPTModel.class_embeds)
    predict = _of_tuner(JSCPTModel.predict)
    prompt_tokens = _of_tuner(JSCPTModel.prompt_tokens)
    task_parameters = _of_tuner(JSCPTModel.task_parameters)
    set_task = _of_tuner(JSCPTModel.set_task)
    add_task = _of_tuner(JSCPTModel.add_task)
    train_only = _of_tuner(JSCPTModel.train_only)
    observe = _of_tuner(JSCPTModel.observe)

    @property
    def task_names(self) -> list[str]:
        """The active adapter's tasks, in the order of `task_ids`."""
        return self.base_model.task_names

    @property
    def trained_task(self) -> str | None:
        """The task of `train_only`, or `None`."""
        return self.base_model.trained_task

    def print_trainable_parameters(self) -> None:
        """As `PeftModel`'s, beside what the method's publication says."""
        super().print_trainable_parameters()
        method = self.base_model.active_jscpt_config.method
        published = None if method is None else METHODS[method].published_parameters
        if published is not None:
            print(f"published for {method} with its original settings on ViT-B/16: {published:,d} per adapter")

    def export_task(
        self,
        task: str,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
    ) -> Path:
        """Writes a task's classifier into a folder, to be served with PyTorch alone; see `serving.export_task`."""
        from .serving.export import export_task

        return export_task(self.base_model, task, directory, dtype, image_mean, image_std)

    def forward(
        self,
        *args: Any,
        task_ids: Tensor | Sequence[int] | int | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """With `labels`, or images and no `input_ids`, an image classifier; else the base model under the prompts.

        Args:
            args, kwargs: of the base model.
            task_ids: `[B]`, or one id for all; default: the task of `set_task`.
            labels: `[B]` within each sample's task.
            num_items_in_batch: what the summed loss is divided by, as `Trainer` asks; default: as in `classify`.

        Returns:
            `JSCPTOutput` with `loss` and `logits` `[B, C]`, for whatever else see `classify`; or the base model's.
        """
        if labels is None and (args or kwargs.get("input_ids") is not None):
            return super().forward(*args, **kwargs, **({} if task_ids is None else {"task_ids": task_ids}))
        unused = ("input_ids", "attention_mask", "position_ids", "return_dict", "return_loss")
        images = {name: value for name, value in kwargs.items() if name not in unused}
        output = self.classify(**images, task_ids=task_ids, labels=labels)
        loss = output.loss
        if labels is not None and num_items_in_batch is not None:
            penalties = 0 if output.penalties is None else output.penalties * output.task_counts
            loss = (output.loss_sums + penalties).sum() / num_items_in_batch
        if self.training and loss is not None and loss.requires_grad:
            self.observe(output, task_ids)
        return JSCPTOutput(loss=loss, logits=output.logits)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within, this thread sees the base model alone; other threads go on with the adapter."""
        with self.base_model.backbone.context.disabled():
            yield

    # ---- saving and loading -----------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """As `PeftModel`'s; with a digest of the weights, and the card is of an adapter that is saved.

        Raises:
            ValueError: a tensor is not finite; what is in the folder is as it was.
            OSError: it could not be written, as where the disk is full.
        """
        from .serving.card import default_adapter

        save_directory = path_given("save_directory", save_directory)
        names = (selected_adapters or list(self.peft_config)) if is_main_process else []
        for name in set(names) & set(self.peft_config):  # PEFT refuses others
            check_sound(get_peft_model_state_dict(self, kwargs.get("state_dict"), name))
        folders = [Path(save_directory, "" if name == "default" else name) for name in names]
        try:
            for folder in folders:
                (folder / DIGEST_FILE).unlink(missing_ok=True)  # of weights that are about to go
            super().save_pretrained(
                save_directory, safe_serialization, selected_adapters, save_embedding_layers, is_main_process, **kwargs
            )
            for folder in folders:
                write_digest(folder, safe_serialization)
                # Of an earlier save in the other format, which PEFT might load instead.
                (folder / (WEIGHTS_NAME if safe_serialization else SAFETENSORS_WEIGHTS_NAME)).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"the adapter could not be saved in {save_directory} ({type(error).__name__}: {error}): what is "
                f"there of {SAFETENSORS_WEIGHTS_NAME} is not whole. Make room on the disk and save it again; in "
                "memory it is as it was."
            ) from error
        if is_main_process and selected_adapters and default_adapter(self) not in selected_adapters:
            self._write_card(save_directory, adapter=selected_adapters[0])

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Writes the README.md beside the adapter; called by `save_pretrained`."""
        self._write_card(output_dir)

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # `push_to_hub` has just put the repository's card, or an empty one, over what `save_pretrained` wrote.
        self._write_card(working_dir, name=repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _write_card(self, folder: str | Path, **about: Any) -> None:
        from .serving.card import adapter_card, write_card

        try:
            write_card(adapter_card(self, **about), folder)
        except Exception as error:  # whatever it is: PEFT writes the card first, and the weights are what counts
            logger.warning(f"The card of the adapter in {folder} was not written ({type(error).__name__}: {error}).")

    def load_adapter(self, model_id: str | Path, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """As `PeftModel`'s, or nothing has changed.

        Raises:
            ValueError: the weights are not those of the configuration, or not those that were saved; they are no
                safetensors file, or a pickle that would execute something.
        """
        try:
            check_digest(model_id, **self._split_kwargs(kwargs)[0])
            result = super().load_adapter(model_id, adapter_name, *args, **kwargs)
            self.peft_config[adapter_name].awaits_weights = False
            return result
        except SafetensorError as error:
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME} of the adapter {str(model_id)!r} is no safetensors file, or not whole "
                f"({error}): download it again, or have it published again."
            ) from error
        except (UnpicklingError, EOFError, IndexError) as error:
            raise ValueError(
                f"{WEIGHTS_NAME} of the adapter {str(model_id)!r} is a pickle of more than tensors, or not whole, and "
                f"nothing of it was executed: have the adapter published as {SAFETENSORS_WEIGHTS_NAME}."
            ) from error
        finally:
            config = self.peft_config.get(adapter_name)
            if config is not None and config.awaits_weights:  # it was made for weights that did not come
                if len(self.peft_config) > 1:
                    self.delete_adapter(adapter_name)
                else:
                    self.unload()
