"""A small prompted CLIP and the same function computed by the concatenating oracle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import oracles
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPModel

from jscpt_peft import JSCPTConfig

if TYPE_CHECKING:
    from jscpt_peft.training.task_gradients import Batch

# Tasks with different numbers of classes; names of different lengths, so that padding takes part.
TASKS = {"photo": ["cat", "dog", "fox"], "clipart": ["cat", "dog"], "sketch": ["a", "b", "c", "d"]}


def class_token_ids(tasks: dict[str, list[str]] = TASKS) -> dict[str, list[list[int]]]:
    """Unpadded ids of one to four words a class, as a tokenizer would give them."""
    return {
        task: [
            [
                oracles.TINY_SOS,
                *[(7 * row + 13 * label + 5 * word) % 90 for word in range(1 + (row + label) % 4)],
                oracles.TINY_EOS,
            ]
            for label in range(len(names))
        ]
        for row, (task, names) in enumerate(tasks.items())
    }


def in_the_middle(ids: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """The same texts for `class_position="middle"`, behind class names of one word and more, some with words after."""
    ends = {task: [max(2, len(each) - 2) for each in texts] for task, texts in ids.items()}
    return {
        task: [[*each[:end], -1, *each[end:]] for each, end in zip(texts, ends[task], strict=True)]
        for task, texts in ids.items()
    }


def config(**options) -> JSCPTConfig:
    """A configuration that needs no tokenizer; `options` replace its fields."""
    options = {"tasks": TASKS, "num_shared_tokens": 3, "num_task_tokens": 2, **options}
    if options.get("intervention", "mask_mlp") in ("mask_mlp", "decoupled"):
        options = {"intervention_hidden": 4, **options}
    return JSCPTConfig(**{"class_token_ids": class_token_ids(options["tasks"]), "prompt_init_std": 0.5, **options})


def prompted_clip(
    dtype: torch.dtype = torch.float64,
    eos_token_id: int = oracles.TINY_EOS,
    implementation: str = "sdpa",
    clip: CLIPModel | None = None,
    **options,
) -> PeftModel:
    """A random tiny CLIP under prompts; zero-initialised weights and masks are moved so that every path counts."""
    clip = oracles.tiny_clip(eos_token_id=eos_token_id, dtype=dtype) if clip is None else clip
    clip.set_attn_implementation(implementation)
    model = get_peft_model(clip, config(**options))
    head = model.task_adapter.head
    move([] if head is None else [parameter for parameter in head.parameters() if parameter.requires_grad])
    return model


def move(tensors: Iterable[Tensor]) -> None:
    """Away from a start at which they may have no effect; what is no floating-point number stays."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in filter(torch.is_floating_point, tensors):
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator).to(tensor))


def batch(model: PeftModel, per_task: int = 2, seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images, task ids and labels of every task, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    counts = [len(names) for names in model.active_jscpt_config.tasks.values()]
    task_ids = torch.arange(len(counts)).repeat(per_task)
    labels = torch.tensor([int(torch.randint(counts[task], (), generator=generator)) for task in task_ids])
    pixels = torch.randn(len(task_ids), 3, 32, 32, generator=generator).to(model.dtype)
    return pixels, task_ids, labels


def batch_in_blocks(model: PeftModel, per_task: int = 2, seed: int = 2) -> Batch:
    """The same task after task, as the trainer's sampler gives it and the trainer checks it."""
    from jscpt_peft.training.task_gradients import Batch  # here, since tests of models need no trainer

    pixels, task_ids, labels = batch(model, per_task, seed)
    order = task_ids.argsort(stable=True)
    inputs = {"pixel_values": pixels[order], "task_ids": task_ids[order], "labels": labels[order]}
    return Batch.checked(inputs, model.active_jscpt_config.tasks, torch.device("cpu"))


def losses_by_hand(model: PeftModel, embeds: Tensor, output, task_ids: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3 `[N]` of image features, with the class features of an output of `classify`."""
    scale, losses = model.get_base_model().logit_scale.exp(), []
    for task, names in enumerate(model.active_jscpt_config.tasks.values()):
        x, z = normalize(embeds[task_ids == task]), normalize(output.class_embeds[task, : len(names)])
        losses.append(cross_entropy(scale * x @ z.T, labels[task_ids == task]))
    return torch.stack(losses)


def task_by_task(model: PeftModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The losses on x̄ and on x `[N]`, and each task's gradient for the shared prompts `[N, P]`, by N backwards."""
    task_ids, labels = batch["task_ids"], batch["labels"]
    shared = [parameter for name, parameter in model.named_parameters() if name.endswith("_shared")]
    output = model.classify(batch["pixel_values"].to(model.dtype), task_ids)
    losses = losses_by_hand(model, output.selected_embeds, output, task_ids, labels)
    gradients = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    references = losses_by_hand(model, output.image_embeds, output, task_ids, labels)
    flat = torch.stack([torch.cat([each.flatten() for each in task]) for task in gradients])
    return losses.detach(), references.detach(), flat


class TaskLosses(torch.nn.Module):
    """Task losses `[N]` of images, as a function of the parameters for `torch.func.functional_call`."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> Tensor:
        return self.model.classify(*batch).task_losses


def oracle_losses(model: PeftModel, pixels: Tensor, task_ids: Tensor, labels: Tensor) -> Tensor:
    """Losses `[N]` of Eq. 3 by concatenation, one task at a time, from the model's own parameters."""
    plain, views = PlainClip(model.get_base_model()), model.task_parameters()
    losses = []
    for task, ids in enumerate(model.active_jscpt_config.class_token_ids.values()):
        chosen = task_ids == task
        classes = oracles.text_features(plain, views["text"][task], ids)
        x = oracles.image_features(plain, views["vision"][task], pixels[chosen])
        names = ("inner_down", "inner_down_bias", "inner_up", "inner_up_bias")
        names += tuple(name.replace("inner", "outer") for name in names)
        if "mask" in views:
            x = oracles.intervention(x, views["mask"][task], *(views[name][task] for name in names))
        losses.append(oracles.task_loss(plain, x, classes, labels[chosen]))
    return torch.stack(losses)


class PlainClip:
    """The unwrapped modules of a prompted CLIP under the names that the oracle uses."""

    def __init__(self, clip) -> None:
        self.config = clip.config
        self.dtype = clip.dtype
        self.logit_scale = clip.logit_scale
        self.text_projection = clip.text_projection
        self.text_model = clip.text_model.base_layer
        self.vision_model = clip.vision_model.base_layer
        self.visual_projection = clip.visual_projection.base_layer
