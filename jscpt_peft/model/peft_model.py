"""`JSCPTPeftModel`: the `PeftModel` around a `JSCPTModel`, which can tell what it is on a card and when it loads.

PEFT chooses the class of a `PeftModel` by `task_type`, which `AutoPeftModel` refuses, and has no other way to extend
it. So a plain `PeftModel` becomes one of these at the moment a `JSCPTModel` is put into it. Nothing of PEFT is
replaced, and the `PeftModel`s of other methods stay what they are.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers.utils import logging

from jscpt_peft.serving.card import adapter_card, default_adapter, write_card

from .tuner import JSCPTModel

logger = logging.get_logger(__name__)


class JSCPTPeftModel(PeftModel):
    """A `PeftModel` whose `save_pretrained` and `push_to_hub` write the card of a JSCPT adapter.

    A card that somebody has written or edited is left alone, in a folder and on the Hub.
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """As `PeftModel`'s; the card is of an adapter that is saved."""
        super().save_pretrained(
            save_directory, safe_serialization, selected_adapters, save_embedding_layers, is_main_process, **kwargs
        )
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
        try:
            write_card(adapter_card(self, **about), folder)
        except Exception as error:  # whatever it is: PEFT writes the card first, and the weights are what counts
            logger.warning(f"The card of the adapter in {folder} was not written ({type(error).__name__}: {error}).")

    def load_adapter(self, model_id: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As `PeftModel`'s.

        Raises:
            ValueError: the weights are no safetensors file, or a pickle that would execute something.
        """
        try:
            return super().load_adapter(model_id, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME} of the adapter {str(model_id)!r} is no safetensors file, or not whole "
                f"({error}): download it again, or have it published again."
            ) from error
        except UnpicklingError as error:
            raise ValueError(
                f"{WEIGHTS_NAME} of the adapter {str(model_id)!r} is a pickle of more than tensors, and nothing of it "
                f"was executed: have the adapter published as {SAFETENSORS_WEIGHTS_NAME}."
            ) from error


def _adopt(parent: nn.Module, _name: str, child: nn.Module | None) -> None:
    if isinstance(child, JSCPTModel) and type(parent) is PeftModel:
        parent.__class__ = JSCPTPeftModel


# `ADOPTION.remove()` ends it: new models then stay plain `PeftModel`s.
ADOPTION = register_module_module_registration_hook(_adopt)
