"""How an adapter is put into a base model: what PEFT asks of a tuner."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from jscpt_peft.choices import printable
from jscpt_peft.settings import Name, check_setting

from .adapter import TaskAdapter
from .adapter_file import check_tensors
from .backbones import backbone_for
from .class_features import ClassFeatures
from .class_tokens import check_lengths, fill_token_ids
from .config import JSCPTConfig
from .layer import AdapterHolder, JSCPTLayer
from .start import Sizes, Start

ADAPTERS = "jscpt_adapters"


class JSCPTInjection(BaseTuner):
    """A base model with wrapped layers, and the adapters that they apply.

    Attributes:
        backbone: the base model with its wrapped layers.
        class_features: the class features of the adapters.
    """

    prefix = "jscpt_"
    tuner_layer_cls = JSCPTLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        check_setting("adapter_name", adapter_name, Name)
        if "." in adapter_name or printable(adapter_name) != adapter_name:
            raise ValueError(f"`adapter_name` is {adapter_name!r}: it can have no dots and no control characters.")
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    # PEFT's form: not every argument is used here.
    def _pre_injection_hook(self, model: nn.Module, config: JSCPTConfig, adapter_name: str) -> None:  # noqa: ARG002
        self.backbone = backbone_for(self.model)
        self.class_features = ClassFeatures(self.backbone)

    # PEFT's form: not every argument is used here.
    def _prepare_adapter_config(self, peft_config: JSCPTConfig, model_config: dict) -> JSCPTConfig:  # noqa: ARG002
        peft_config.check()
        if peft_config.target_modules not in (None, self.backbone.target_modules):
            raise ValueError(
                f"`target_modules` is {peft_config.target_modules!r}: leave it out, JSCPT adapts both towers."
            )
        peft_config.target_modules = self.backbone.target_modules
        base = type(self.model)
        peft_config.auto_mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        return peft_config

    def _prepare_model(self, peft_config: JSCPTConfig, model: nn.Module) -> None:  # noqa: ARG002 (PEFT's form)
        # `model` is the PeftModel when a further adapter is added; `self.model` is the base model in every case.
        _check_base_model(peft_config, self.backbone.sizes)
        fill_token_ids(peft_config, self.model.config)
        self._made = self.start_adapter(peft_config, len(peft_config.tasks))  # before any layer is replaced

    def start_adapter(self, config: JSCPTConfig, num_tasks: int, added_task: str | None = None) -> TaskAdapter:
        """An adapter's parameters at their start: of N tasks, or of one, `added_task`, to append to a trained adapter.

        Raises:
            ValueError: a class text does not fit behind the prompts.
        """
        words = config.prompt_init_token_ids
        start = Start(
            config,
            self.backbone.sizes,
            num_tasks,
            like=self.model.logit_scale,
            vision_norm=self.backbone.vision_norm,
            prompt_init=self.backbone.word_embeddings(words).detach() if words else None,
            added_task=added_task,
        )
        adapter = TaskAdapter(start)
        with torch.no_grad():
            prompts = adapter.prompts()
        _check_prompts(config, prompts, num_tasks, self.backbone.sizes)
        check_lengths(config, self.model.config, prompts["text"].shape[2] if "text" in prompts else 0)
        return adapter

    def _create_and_replace(
        self,
        peft_config: JSCPTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,  # noqa: ARG002 (PEFT's form)
        parameter_name: str | None = None,  # noqa: ARG002 (PEFT's form)
    ) -> None:
        layer = target if isinstance(target, JSCPTLayer) else self.backbone.wrap(target)
        layer.update_layer(adapter_name, peft_config)
        if isinstance(layer, AdapterHolder):
            layer.jscpt_adapters[adapter_name] = self._made
            del self._made
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        if adapter_name not in self.active_adapters:
            layer.set_requires_grad(adapter_name, False)  # a further adapter is not trained until it is set active

    # PEFT's form: not every argument is used here.
    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:  # noqa: ARG002
        # PEFT's own moves `weight` and `bias`, which towers do not have; parameters are made where they belong.
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return re.sub(rf"(\.{ADAPTERS})\.{re.escape(adapter_name)}(?=\.)", r"\1", key)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: JSCPTConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        own = {
            cls._remove_adapter_name_from_key(name, adapter_name): tensor
            for name, tensor in model.state_dict().items()
            if f".{ADAPTERS}.{adapter_name}." in name
        }
        check_tensors(state_dict, own)  # PEFT would load whatever the file holds, into the base model too
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_args, **keywords):
        if keywords.get("adapter_names") is not None:
            raise ValueError("`adapter_names` is not supported: call `set_adapter(name)`, one adapter at a time.")
        yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "JSCPT prompts depend on each sample's task and cannot be merged into the base weights: use `unload()`."
        )

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.class_features.forget(adapter_name)

    # ---- the active adapter -----------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[JSCPTLayer]:
        """The wrapped layers."""
        return [self.backbone.vision, self.backbone.text, self.backbone.projection]

    @property
    def active_adapter_name(self) -> str:
        """Name of the one active adapter."""
        return self.backbone.vision.active_name

    @property
    def active_jscpt_config(self) -> JSCPTConfig:
        """Configuration of the one active adapter."""
        return self.backbone.vision.active_config

    @property
    def task_adapter(self) -> TaskAdapter:
        """The active adapter's parameters, also while adapters are switched off."""
        return self.backbone.context.adapters[self.active_adapter_name]

    def freeze_other_adapters(self) -> None:
        """No gradients for adapters that are not active, whatever has let them into these."""
        for name, adapter in self.backbone.context.adapters.items():
            if name != self.active_adapter_name:
                for parameter in adapter.requires_grad_(False).parameters():
                    parameter.grad = None

    @property
    def task_names(self) -> list[str]:
        """The active adapter's tasks, in the order of `task_ids`."""
        return list(self.active_jscpt_config.tasks)


def _check_base_model(config: JSCPTConfig, sizes: Sizes) -> None:
    """Records the sizes of the base model, or compares them with those the adapter was made for.

    Raises:
        ValueError: they differ, or the base model has fewer blocks than `prompt_depth`.
    """
    dimensions = {
        "vision_width": sizes.widths["vision"],
        "vision_blocks": sizes.blocks["vision"],
        "text_width": sizes.widths["text"],
        "text_blocks": sizes.blocks["text"],
        "projection": sizes.projection,
        "vocabulary": sizes.vocabulary,
    }
    if config.base_dimensions is None:
        config.base_dimensions = dimensions
    differing = {k: (v, dimensions.get(k)) for k, v in config.base_dimensions.items() if v != dimensions.get(k)}
    if differing:
        detail = ", ".join(f"{name} {made} (this base: {here})" for name, (made, here) in differing.items())
        raise ValueError(
            f"The adapter was made for another base model: {detail}. Load it on "
            f"`{config.base_model_name_or_path}`, the base model it was trained on (`base_dimensions`)."
        )
    blocks = min(sizes.blocks[tower] for tower in config.prompted_towers or ("vision", "text"))
    if config.prompt_depth is not None and config.prompt_depth > blocks:
        raise ValueError(
            f"`prompt_depth` is {config.prompt_depth}, but the base model's prompted towers have {blocks} blocks: use "
            f"at most {blocks}, or None for every block."
        )


def _check_prompts(config: JSCPTConfig, prompts: dict[str, Tensor], num_tasks: int, sizes: Sizes) -> None:
    """Raises a `ValueError` where a prompt source gives something else than prompts of the towers."""
    for tower, given in prompts.items():
        if tower in sizes.widths:
            fits = given.dim() == 4 and (len(given), given.shape[-1]) == (num_tasks, sizes.widths[tower])
            if fits and 1 <= given.shape[1] <= sizes.blocks[tower]:
                continue
        raise ValueError(
            f"the prompt source {config.prompts!r} gives {tower!r}: {tuple(given.shape)}; give `vision` or `text`: "
            "[tasks, depth, tokens, width of the tower], with a depth up to its number of blocks."
        )
    depth = prompts["text"].shape[1] if "text" in prompts else 0
    if config.class_position == "middle" and depth != 1:
        raise ValueError(
            f"`class_position` is 'middle', but {depth or 'no'} blocks of the text tower have prompts of their own: "
            "it is for prompts of the first block alone, as with prompt_depth=1 or the methods 'coop' and 'mvlpt'."
        )
