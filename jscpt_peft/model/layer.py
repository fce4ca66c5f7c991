"""What the wrapped layers of a JSCPT model have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .config import JSCPTConfig
from .routing import TaskRouter
from .task_stack import TaskStack


class JSCPTLayer(nn.Module, BaseTunerLayer):
    """A part of `CLIPModel` wrapped with the adapters' parameters, held in `nn.ModuleDict`s by adapter name.

    Subclasses name these dicts in `adapter_layer_names` and fill them in `update_layer`.
    """

    # PEFT deletes an adapter from these too; an adapter without parameters here is known by its configuration alone.
    other_param_names = ("adapter_configs",)

    def __init__(self, base_layer: nn.Module, router: TaskRouter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.router = router
        self.adapter_configs: dict[str, JSCPTConfig] = {}
        self._disable_adapters = False
        self.merged_adapters = []

    def update_layer(self, adapter_name: str, config: JSCPTConfig) -> None:
        """Adds the parameters of an adapter."""
        self.adapter_configs[adapter_name] = config

    def add_task(self, adapter_name: str, config: JSCPTConfig, init_from: int | None) -> None:  # noqa: ARG002
        """Adds the parameters of a task to an adapter.

        Args:
            adapter_name: the adapter.
            config: its configuration with the new task, the last one.
            init_from: position of the task whose prompts the new one starts from; `None`: random ones.
        """
        self.adapter_configs[adapter_name] = config

    def task_stacks(self, adapter_name: str) -> list[TaskStack]:
        """What holds an adapter's parameters here."""
        dicts = [self.get_submodule(name) for name in self.adapter_layer_names]
        return [modules[adapter_name] for modules in dicts if adapter_name in modules]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode)
        self._freeze_others()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze_others()

    def _freeze_others(self) -> None:
        # PEFT has just let gradients into all of an adapter, also where one task is trained alone.
        for adapter_name in self.adapter_configs:
            for stack in self.task_stacks(adapter_name):
                stack.freeze_others()

    @staticmethod
    def generator(config: JSCPTConfig, salt: str) -> torch.Generator:
        """Source of an adapter's random start: the same on every process, another one for every `salt`."""
        digest = hashlib.sha256(f"{config.init_seed}/{salt}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    @property
    def enabled(self) -> bool:
        """Whether an adapter is to be applied."""
        return not self.disable_adapters and bool(self.active_adapters) and bool(self.adapter_configs)

    @property
    def active_name(self) -> str:
        """Name of the one active adapter; a `ValueError` where several are."""
        if len(self.active_adapters) != 1:
            raise ValueError(
                f"JSCPT applies one adapter at a time, but {self.active_adapters} are active: call "
                "`set_adapter(name)` with one of them."
            )
        return self.active_adapters[0]

    @property
    def active_config(self) -> JSCPTConfig:
        """Configuration of the active adapter."""
        return self.adapter_configs[self.active_name]
