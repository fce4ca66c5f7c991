"""`JSCPTModel`: what PEFT puts around a base model for a `JSCPTConfig`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from jscpt_peft.settings import BatchSize, check_setting

from .causes import check_logits
from .class_residual import with_residual
from .growth import GrowingModel
from .heads import TaskParameters
from .heads.base import LossSums
from .images import ImageLike, pixel_batches
from .losses import JSCPTOutput, check_labels, mean_losses, task_logits, task_loss_sums
from .task_context import deterministic, first_of_each_task, task_index
from .task_rows import TaskRows
from .unseen_classes import unseen_class_embeds, unseen_logits

TOWER_NAMES = ("vision", "text")


class JSCPTModel(GrowingModel):
    """A frozen base model under prompts, with what a method does to the features.

    Made by `get_peft_model`; every method here is reached from the `JSCPTPeftModel` it returns.
    """

    def set_task(self, task: str | None) -> None:
        """From now on the model is a `CLIPModel` under this task's prompts; `None` undoes it.

        Raises:
            ValueError: the active adapter has no such task.
        """
        if task is not None:
            task_index(task, self.task_names)
        self.backbone.context.task = task

    def prompt_tokens(self, tower: str) -> Tensor:
        """Prompts of a tower as each task sees them, `[N, depth, n, d]`; for JSCPT shared tokens first.

        Args:
            tower: `"vision"` or `"text"`.

        Raises:
            ValueError: there is no such tower.
        """
        if tower not in TOWER_NAMES:
            raise ValueError(f"`tower` must be one of {list(TOWER_NAMES)}, got {tower!r}.")
        return self.task_parameters()[tower]

    def task_parameters(self) -> TaskParameters:
        """Every trainable parameter as each task sees it: name -> `[N, ...]`, differentiable in the parameters.

        See `TaskAdapter.task_parameters`; `vision` and `text`, the prompts, are always there, with n = 0 where there
        are none.
        """
        adapter = self.backbone.vision.active_task_adapter
        parameters = {} if adapter is None else adapter.task_parameters()
        for tower in (self.backbone.vision, self.backbone.text):
            if tower.name not in parameters:
                parameters[tower.name] = tower.no_prompts()
        return parameters

    def classify(
        self,
        pixel_values: Tensor,
        task_ids: TaskRows | Tensor | Sequence[int] | int | None = None,
        labels: Tensor | None = None,
        task_parameters: TaskParameters | None = None,
        present_tasks_only: bool = False,
    ) -> JSCPTOutput:
        """Classifies images of any mixture of tasks, each among its own task's classes.

        Args:
            pixel_values: `[B, 3, H, W]` images, normalised as CLIP's processor does.
            task_ids: `[B]`, or one id for all; `None`: the task of `set_task`; or `TaskRows`, which are not looked for
                on the device.
            labels: `[B]` within each sample's task.
            task_parameters: what `task_parameters()` returned, where gradients with respect to it are wanted.
            present_tasks_only: where there is something to learn, spend nothing on tasks without an image here: their
                rows of `class_embeds` have no class features.

        Raises:
            ValueError: a task id or a label is out of range, or no task is known.
            FloatingPointError: logits are NaN, without labels and gradients; the message names the cause.
        """
        if not (isinstance(pixel_values, Tensor) and pixel_values.dim() == 4 and pixel_values.is_floating_point()):
            tensor = isinstance(pixel_values, Tensor)
            given = f"{pixel_values.dtype} {list(pixel_values.shape)}" if tensor else type(pixel_values).__name__
            raise ValueError(
                f"`pixel_values` is {given}: give normalised floating-point [B, 3, H, W]; `predict` takes images."
            )
        rows = self.backbone.vision.resolve(task_ids, pixel_values)
        given = task_parameters is not None
        parameters = task_parameters if given else self.task_parameters()
        learning = given or present_tasks_only or (labels is not None and parameters["text"].requires_grad)
        class_embeds = self._class_embeds(parameters, learning, rows.tasks if present_tasks_only else None)
        x = self.backbone.image_features(pixel_values, rows, parameters["vision"])
        head = self.backbone.vision.active_head
        selected = x if head is None else head.select(x, rows.ids, parameters)
        logits = self.logits(selected, class_embeds, rows)
        if labels is None and not torch.is_grad_enabled():  # training and evaluation look at losses
            check_logits(self, logits, pixel_values)
        output = JSCPTOutput(logits=logits, image_embeds=x, selected_embeds=selected, class_embeds=class_embeds)
        if labels is not None:
            check_labels(labels, rows.ids, self.active_jscpt_config.tasks)
            sums, counts = task_loss_sums(logits, labels, rows, len(self.task_names))
            output.loss_sums, output.task_counts = sums, counts
            output.task_losses = mean_losses(sums, counts)
            output.penalties = self.penalties(output, rows.ids, parameters, partial(self._loss_sums, rows.ids, labels))
            total = output.task_losses if output.penalties is None else output.task_losses + output.penalties
            output.loss = total.nanmean()
        return output

    def _loss_sums(self, task_ids: Tensor, labels: Tensor, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return task_loss_sums(logits, labels[rows], TaskRows.of(task_ids[rows]), len(self.task_names))

    def penalties(
        self, output: JSCPTOutput, task_ids: Tensor, task_parameters: TaskParameters, loss_sums: LossSums
    ) -> Tensor | None:
        """What the head adds to the tasks' mean losses in training, `[N]`; `None` where it adds nothing.

        Args:
            output: of `classify` with these `task_ids` `[B]` and `task_parameters`.
            loss_sums: (logits `[b, C]` of some images, their positions `[b]`) -> summed losses and counts, `[N]`.
        """
        head = self.backbone.vision.active_head
        if head is None or not head.has_penalty or not torch.is_grad_enabled():
            return None
        return head.penalty(
            output.image_embeds,
            task_ids,
            task_parameters,
            lambda selected, rows: loss_sums(self.logits(selected, output.class_embeds, task_ids[rows]), rows),
        )

    def observe(self, output: JSCPTOutput, task_ids: Tensor | Sequence[int] | int | None = None) -> None:
        """In a training loop of one's own, after each step: shows its images to a head that keeps some.

        `JSCPTTrainer` does so by itself. See `FeatureHead.observe`; other methods do nothing. `task_ids` are as for
        `classify`.
        """
        head = self.task_adapter.head
        if head is not None and head.observes:
            task_ids = self.backbone.vision.resolve(task_ids, output.image_embeds).ids
            present, first = first_of_each_task(task_ids, len(self.task_names))
            head.observe(output.image_embeds.detach()[first[present]], present.nonzero()[:, 0])

    def class_embeds(self) -> Tensor:
        """Class features z `[N, C, D]` of all tasks under their text prompts, with their residuals if there are any.

        They are zero beyond a task's classes. Without gradients to text prompts z is computed once and kept until a
        parameter changes.
        """
        return self._class_embeds(self.task_parameters(), learning=False)

    def _class_embeds(
        self, parameters: TaskParameters, learning: bool, tasks: tuple[int, ...] | None = None
    ) -> Tensor:
        embeds = self.class_features(parameters["text"], learning, tasks)
        residual = parameters.get("class_residual")
        return embeds if residual is None else with_residual(embeds, residual)

    def logits(self, embeds: Tensor, class_embeds: Tensor, task_ids: TaskRows | Tensor) -> Tensor:
        """Logits `[B, C]` of image features `[B, D]` or `[B, K, D]` under class features `[N, C, D]` (Eq. 1)."""
        rows, texts = self.backbone.vision.resolve(task_ids, embeds), self.class_features.texts
        return task_logits(embeds, class_embeds, texts.counts, texts.num_classes, rows, self.backbone.logits)

    def reference_embeds(self, x: Tensor, task_ids: Tensor, kind: str) -> Tensor:
        """The view `[B, D]` that the causal effect compares x̄ with (Eq. 4); see `FeatureHead.reference`.

        Args:
            x: `[B, D]` image features.
            task_ids: `[B]`.
            kind: `"original"` or `"complement"`.
        """
        head = self.backbone.vision.active_head
        return x if head is None else head.reference(x, task_ids, head.task_parameters(), kind)

    @torch.no_grad()
    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        task: str | None = None,
        batch_size: int = 64,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        bf16: bool = False,
        classes: Sequence[str] | None = None,
    ) -> list[dict[str, float]]:
        """Probabilities of the task's classes, or of any others, for images, best first.

        Args:
            images: one PIL image (of any mode) or path of a file, or any iterable of them, read batch by batch.
            task: name of the task; `None`: the task of `set_task`.
            batch_size: images that are encoded together.
            image_mean: mean of the base model's image processor, per channel.
            image_std: standard deviation of the base model's image processor, per channel.
            bf16: run the towers of a float32 base in bfloat16; probabilities are float32 always.
            classes: names to choose among under the task's prompts and templates, in the place of its own classes. It
                need not have been trained with them; a tokenizer must be at hand.

        Returns:
            One dict `{class name: probability}` per image.

        Raises:
            TypeError: an image is neither a PIL image nor a path.
            ValueError: no such task, no task is known, `batch_size` is below 1, an image cannot be read, or a name in
                `classes` occurs twice or is too long.
        """
        from jscpt_peft.data import image_transform  # here, since `datasets` takes seconds to import

        check_setting("batch_size", batch_size, BatchSize)
        if isinstance(images, str) or not isinstance(images, Iterable):
            images = [images]
        device = self.model.device
        task_id = None if task is None else task_index(task, self.task_names)
        (task_id,) = self.backbone.context.resolve(task_id, 1, self.task_names, device).tasks
        task = self.task_names[task_id]
        transform = image_transform(self.model.config.vision_config.image_size, image_mean, image_std, train=False)
        precision = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()  # the caller's own stays on
        predictions = []
        with deterministic():
            with precision:
                unseen = None if classes is None else unseen_class_embeds(self, task, classes)
            class_names = list(self.active_jscpt_config.tasks[task] if classes is None else classes)
            for pixels in pixel_batches(images, batch_size, transform):
                with precision:
                    output = self.classify(pixels.to(device), task_id)
                    logits = output.logits[:, : len(class_names)]
                    if unseen is not None:
                        logits = unseen_logits(self, output.selected_embeds, unseen)
                probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
                for values, labels in zip(probabilities.tolist(), order.tolist(), strict=True):
                    named = zip(labels, values, strict=True)
                    predictions.append({class_names[label]: value for label, value in named})
        return predictions
