"""`JSCPTModel`: what `get_peft_model(clip, JSCPTConfig(...))` puts around a `CLIPModel`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .base_model import check_base_model
from .class_features import ClassFeatures
from .class_tokens import fill_token_ids
from .classifier import JSCPTOutput, check_labels, task_logits, task_losses
from .config import JSCPTConfig
from .encoder import PromptedText, PromptedTower, PromptedVision
from .growth import add_task, train_only, trained_task
from .intervention import FeatureSelection, Views, complement_features, select_features
from .layer import JSCPTLayer
from .prediction import Picture, predict
from .routing import TaskRouter, task_index


class JSCPTModel(BaseTuner):
    """A frozen `CLIPModel` under task-shared and task-specific prompts with causal feature selection.

    Made by `get_peft_model`; every method here is reached from the `PeftModel` it returns.
    """

    prefix = "jscpt_"
    tuner_layer_cls = JSCPTLayer
    target_module_mapping = {"clip": r"(.*\.)?(text_model|vision_model|visual_projection)"}  # noqa: RUF012 (PEFT's form)

    # ---- PEFT -------------------------------------------------------------------------------------------------------

    def _pre_injection_hook(self, model: nn.Module, config: JSCPTConfig, adapter_name: str) -> None:  # noqa: ARG002
        self.router = TaskRouter()
        self.classes = ClassFeatures(self.model)

    def _prepare_adapter_config(self, peft_config: JSCPTConfig, model_config: dict) -> JSCPTConfig:
        kind, modules = model_config.get("model_type"), peft_config.target_modules
        if kind != "clip":
            raise ValueError(f"JSCPT adapts a transformers `CLIPModel`, got a model of type {kind!r}.")
        if modules not in (None, self.target_module_mapping[kind]):
            raise ValueError(f"`target_modules` is {modules!r}: leave it out, JSCPT adapts both towers.")
        return super()._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config: JSCPTConfig, model: nn.Module) -> None:  # noqa: ARG002
        # `model` is the PeftModel when a further adapter is added; `self.model` is the CLIPModel in every case.
        check_base_model(peft_config, self.model.config)
        fill_token_ids(peft_config, self.model.config)

    def _create_and_replace(
        self,
        peft_config: JSCPTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,  # noqa: ARG002
        parameter_name: str | None = None,  # noqa: ARG002
    ) -> None:
        if isinstance(target, JSCPTLayer):
            layer = target
        elif isinstance(target, CLIPVisionModel):
            layer = PromptedVision(target, self.router)
        elif isinstance(target, CLIPTextModel):
            layer = PromptedText(target, self.router)
        else:
            layer = FeatureSelection(target, self.router)
        layer.update_layer(adapter_name, peft_config)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        if adapter_name not in self.active_adapters:
            layer.set_requires_grad(adapter_name, False)  # a further adapter is not trained until it is set active

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:  # noqa: ARG002
        # PEFT's own moves `weight` and `bias`, which towers do not have; parameters are made where they belong.
        setattr(parent, child_name, new_module)

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
        self.classes.forget(adapter_name)

    # ---- the towers -------------------------------------------------------------------------------------------------

    @property
    def vision_tower(self) -> PromptedVision:
        return self.model.vision_model

    @property
    def text_tower(self) -> PromptedText:
        return self.model.text_model

    @property
    def selection(self) -> FeatureSelection:
        return self.model.visual_projection

    @property
    def active_jscpt_config(self) -> JSCPTConfig:
        """Configuration of the one active adapter."""
        return self.vision_tower.active_config

    @property
    def task_names(self) -> list[str]:
        """The active adapter's tasks, in the order of `task_ids`."""
        return list(self.active_jscpt_config.tasks)

    # ---- using it ---------------------------------------------------------------------------------------------------

    def set_task(self, task: str | None) -> None:
        """From now on the model is a `CLIPModel` under this task's prompts; `None` undoes it.

        Raises:
            ValueError: the active adapter has no such task.
        """
        if task is not None:
            task_index(task, self.task_names)
        self.router.task = task

    def prompt_tokens(self, tower: str) -> torch.Tensor:
        """Prompts of a tower as each task sees them, `[N, depth, n_s + n_t, d]`, shared tokens first.

        Args:
            tower: `"vision"` or `"text"`.

        Raises:
            ValueError: there is no such tower.
        """
        towers: dict[str, PromptedTower] = {"vision": self.vision_tower, "text": self.text_tower}
        if tower not in towers:
            raise ValueError(f"`tower` must be one of {list(towers)}, got {tower!r}.")
        return towers[tower].prompts()

    def task_views(self) -> Views:
        """Every trainable parameter as each task sees it: name -> `[N, ...]`, differentiable in the parameters.

        Losses are functions of these views, and task i's loss of their slices i alone. The gradient of the *sum* of
        the task losses with respect to a view therefore holds every task's own gradient: one backward serves Eqs. 5
        and 9.
        """
        views = {"vision": self.prompt_tokens("vision"), "text": self.prompt_tokens("text")}
        return {**views, **self.selection.views()}

    def class_embeds(self, views: Views | None = None) -> torch.Tensor:
        """Class features z `[N, C, D]` of all tasks under their text prompts, zero beyond a task's classes.

        Without gradients to text prompts they are computed once and kept until a parameter changes.
        """
        if views is not None and views["text"].shape[2] > 0:  # they need not be the parameters'
            return self.classes.encode(self.classes.texts, views["text"])
        prompts = self.prompt_tokens("text")
        return self.classes.task_by_task(prompts) if prompts.requires_grad else self.classes.kept(prompts)

    def classify(
        self,
        pixel_values: torch.Tensor,
        task_ids: torch.Tensor | Sequence[int] | int | None = None,
        labels: torch.Tensor | None = None,
        views: Views | None = None,
        present_tasks_only: bool = False,
    ) -> JSCPTOutput:
        """Classifies images of any mixture of tasks, each among its own task's classes.

        Args:
            pixel_values: `[B, 3, H, W]` images, normalised as CLIP's processor does.
            task_ids: `[B]`, or one id for all; `None`: the task of `set_task`.
            labels: `[B]` within each sample's task.
            views: what `task_views()` returned, where gradients with respect to it are wanted.
            present_tasks_only: spend nothing on tasks without an image here: their rows of `class_embeds` are zero.

        Raises:
            ValueError: a task id or a label is out of range, or no task is known.
        """
        task_ids = self.router.resolve(task_ids, len(pixel_values), self.task_names, pixel_values.device)
        given, views = views is not None, self.task_views() if views is None else views
        if present_tasks_only and views["text"].shape[2] > 0:  # without prompts all tasks' features are kept
            class_embeds = self.classes.encode(self.classes.texts.of_tasks(task_ids), views["text"])
        else:  # all tasks' texts in one pass where there is something to learn
            learning = given or (labels is not None and views["text"].requires_grad)
            class_embeds = self.class_embeds(views if learning else None)
        x = self.selection.project(self.vision_tower.pooled(pixel_values, task_ids, views["vision"]))
        selected = select_features(x, task_ids, views) if "mask" in views else x
        logits = self.logits(selected, class_embeds, task_ids)
        output = JSCPTOutput(logits=logits, image_embeds=x, selected_embeds=selected, class_embeds=class_embeds)
        if labels is not None:
            check_labels(labels, task_ids, self.active_jscpt_config.tasks)
            output.task_losses = task_losses(logits, labels, task_ids, len(self.task_names))
            output.loss = output.task_losses.nanmean()
        return output

    def logits(self, embeds: torch.Tensor, class_embeds: torch.Tensor, task_ids: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]` of image features `[B, D]` under class features `[N, C, D]` (Eq. 1)."""
        scale = self.model.logit_scale.exp()
        return task_logits(embeds, class_embeds, self.classes.texts.num_classes, task_ids, scale)

    def reference_embeds(self, x: torch.Tensor, task_ids: torch.Tensor, kind: str) -> torch.Tensor:
        """The view that the causal effect compares x̄ with (Eq. 4): x itself, or (1 - M)∘x for `"complement"`.

        Args:
            x: `[B, D]` image features.
            task_ids: `[B]`.
            kind: `"original"` or `"complement"`.
        """
        views = self.selection.views()
        return complement_features(x, task_ids, views) if kind == "complement" and views else x

    def predict(
        self,
        images: Picture | Iterable[Picture],
        task: str | None = None,
        batch_size: int = 64,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        bf16: bool = False,
    ) -> list[dict[str, float]]:
        """Probabilities of the task's classes for pictures, best first.

        Args:
            images: one PIL image (of any mode) or path of a file, or any iterable of them, read batch by batch.
            task: name of the task; `None`: the task of `set_task`.
            batch_size: images that are encoded together.
            image_mean: mean of the base model's image processor, per channel.
            image_std: standard deviation of the base model's image processor, per channel.
            bf16: run the towers of a float32 base in bfloat16; probabilities are float32 always.

        Returns:
            One dict `{class name: probability}` an image.

        Raises:
            TypeError: an image is neither a PIL image nor a path.
            ValueError: no such task, no task is known, `batch_size` is below 1, or an image cannot be read.
        """
        return predict(self, images, task, batch_size, image_mean, image_std, bf16)

    def export_task(
        self,
        task: str,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
    ) -> Path:
        """Writes a task's classifier into a folder, to be served with PyTorch alone: see `serving/export.py`."""
        from jscpt_peft.serving.export import export_task  # which knows the model

        return export_task(self, task, directory, dtype, image_mean, image_std)

    def add_task(
        self,
        name: str,
        class_names: Sequence[str],
        class_token_ids: Sequence[Sequence[int]] | None = None,
        init_from: str | None = None,
    ) -> None:
        """Adds a task to the active adapter, the last one in the order of `task_ids`. Make trainers afterwards.

        The other tasks stay as they are. The new one's mask and MLPs (Eq. 2) are at their start; its prompts are
        N(0, `prompt_init_std`²), a function of `init_seed` and `name`.

        Args:
            name: of the new task.
            class_names: its classes, in the order of the labels.
            class_token_ids: one list a class, as in `JSCPTConfig`; `None`: the class texts are tokenised.
            init_from: a task whose prompts the new one starts from.

        Raises:
            ValueError: `name` is taken, a class name occurs twice or is too long, or `init_from` has no prompts.
        """
        add_task(self, name, class_names, class_token_ids, init_from)

    def train_only(self, task: str | None) -> None:
        """Gradients go to one task's own parameters alone; `None`: to all of the active adapter's.

        Whatever the optimizer does, the shared parameters and those of other tasks stay as they are, bit for bit.
        Make optimizers and trainers afterwards.

        Raises:
            ValueError: the active adapter has no such task, or no parameters that are a task's own.
        """
        train_only(self, task)

    @property
    def trained_task(self) -> str | None:
        """The task of `train_only`."""
        return trained_task(self)
