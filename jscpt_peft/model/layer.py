"""What the wrapped layers of a base model have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .adapter import TaskAdapter
from .config import JSCPTConfig
from .heads import FeatureHead
from .task_context import TaskContext
from .task_rows import TaskRows


class JSCPTLayer(nn.Module, BaseTunerLayer):
    """A layer of the base model that applies the active adapter.

    What the wrapped layer has is reached through this one: its attributes, its configuration, its submodules.
    """

    # PEFT deletes an adapter from these too; most layers know an adapter by its configuration alone.
    other_param_names = ("adapter_configs",)

    def __init__(self, base_layer: nn.Module, context: TaskContext) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.context = context
        self.adapter_configs: dict[str, JSCPTConfig] = {}
        self._disable_adapters = False
        self.merged_adapters = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not there yet, as while a pickle is read
                raise
            return getattr(self.base_layer, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.base_layer)})

    def update_layer(self, adapter_name: str, config: JSCPTConfig) -> None:
        """Makes an adapter known here, or its changed configuration."""
        self.adapter_configs[adapter_name] = config

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters are switched off, here or by this thread's `disable_adapter()`."""
        return self._disable_adapters or self.context.is_disabled

    @property
    def enabled(self) -> bool:
        """Whether an adapter is to be applied."""
        return not self.disable_adapters and bool(self.active_adapters) and bool(self.adapter_configs)

    @property
    def active_name(self) -> str:
        """Name of the one active adapter; a `ValueError` where several are."""
        if not self.active_adapters:
            raise ValueError("no adapter is left: add one with `add_adapter(name, config)`, or call `unload()`.")
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

    @property
    def active_task_adapter(self) -> TaskAdapter | None:
        """The active adapter's parameters; `None` where adapters are switched off."""
        return self.context.adapters[self.active_name] if self.enabled else None

    @property
    def active_head(self) -> FeatureHead | None:
        """The active adapter's head; `None` where it has none, or adapters are switched off."""
        adapter = self.active_task_adapter
        return None if adapter is None else adapter.head

    def resolve(self, task_ids: TaskRows | Tensor | Sequence[int] | int | None, rows: Tensor) -> TaskRows:
        """Tasks of images or texts `rows` `[B, ...]`; see `TaskContext.resolve`."""
        return self.context.resolve(task_ids, len(rows), list(self.active_config.tasks), rows.device)


class AdapterHolder(JSCPTLayer):
    """The one layer of a model that holds the adapters: here PEFT saves, casts, freezes and deletes them."""

    adapter_layer_names = ("jscpt_adapters",)

    def __init__(self, base_layer: nn.Module, context: TaskContext) -> None:
        super().__init__(base_layer, context)
        self.jscpt_adapters = context.adapters

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode)
        self._freeze_others()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze_others()

    def _freeze_others(self) -> None:
        # PEFT has just let gradients into all of an adapter, also where one task is trained alone.
        for adapter in self.jscpt_adapters.values():
            adapter.freeze_others()
