"""What the benchmark times: one training step, as public prompt-learning code makes it and as the package does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from operator import add
from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.methods import method_fields
from jscpt_peft.model.cache import results_held
from jscpt_peft.scheduling import Weighting
from jscpt_peft.training.hessian import HessianProduct, hessian_chunks, kept_graph
from jscpt_peft.training.implicit_gradient import dev_gradient, implicit_gradient
from jscpt_peft.training.task_gradients import Batch, scheduled_gradient, shared_gramian, task_gradients
from jscpt_peft.training.task_sums import TaskMeans, TaskSums

# The baseline is the oracle of the tests: a second copy of it could be made slower, or another function, unnoticed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import oracles
import prompted

SHAPES = {
    "vit_b16": {"vision": (768, 12, 12), "text": (512, 12, 8), "image": (224, 16), "projection": 512},
    "vit_b32": {"vision": (768, 12, 12), "text": (512, 12, 8), "image": (224, 32), "projection": 512},
    "vit_l14": {"vision": (1024, 24, 16), "text": (768, 12, 12), "image": (224, 14), "projection": 768},
    "small": {"vision": (128, 4, 2), "text": (128, 4, 2), "image": (224, 32), "projection": 64},
    "tiny": {"vision": (32, 2, 2), "text": (32, 2, 2), "image": (32, 8), "projection": 16},
}  # a tower is (width, blocks, heads), an image (size, patch size)
SOS, EOS = 49406, 49407
NEUMANN_TERMS = 3  # H of Algorithm 1
TOLERANCE = 1e-4


class Sizes(Protocol):
    """What a model and a batch are made from: see `benchmark.BenchmarkArguments`."""

    model: str
    method: str
    tasks: int
    images: int
    classes: int
    tokens: int
    prompt_depth: int | None
    activation_checkpointing: bool
    device: str


def random_model(arguments: Sizes) -> PeftModel:
    """A random CLIP of the chosen shapes under a method; JSCPT has `tokens` shared and as many task tokens."""
    shape, sizes = SHAPES[arguments.model], ("hidden_size", "num_hidden_layers", "num_attention_heads")
    vision, text = (dict(zip(sizes, shape[tower], strict=True)) for tower in ("vision", "text"))
    vision.update(zip(("image_size", "patch_size"), shape["image"], strict=True))
    for tower in (vision, text):
        tower["intermediate_size"] = 4 * tower["hidden_size"]
    text.update(bos_token_id=SOS, eos_token_id=EOS)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=shape["projection"])
    torch.manual_seed(0)
    labels = range(arguments.classes)
    tasks = {f"task {number}": [f"class {label}" for label in labels] for number in range(arguments.tasks)}
    words = {task: [[label, *torch.randint(SOS, (label % 4,)).tolist()] for label in labels] for task in tasks}
    token_ids = {task: [[SOS, *each, EOS] for each in words[task]] for task in tasks}
    clip = CLIPModel(config).eval().to(arguments.device)
    fields = method_fields(arguments.method)
    if arguments.method == "jscpt":
        fields |= {"num_shared_tokens": arguments.tokens, "num_task_tokens": arguments.tokens}
        fields |= {"prompt_depth": arguments.prompt_depth}
    config = JSCPTConfig(**{**fields, "class_template": "{}"}, tasks=tasks, class_token_ids=token_ids)
    model = get_peft_model(clip, config)
    head = model.task_adapter.head
    with torch.no_grad():  # the MLPs of Eq. 2 start as the identity, under which a difference in them would not show
        for parameter in [] if head is None else head.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    if arguments.activation_checkpointing:
        clip.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
    return model


def random_batch(model: PeftModel, arguments: Sizes, seed: int) -> Batch:
    """`images` images of every task, task after task as the trainer's sampler gives them."""
    generator = torch.Generator().manual_seed(seed)
    size, count = model.get_base_model().config.vision_config.image_size, arguments.tasks * arguments.images
    pixels = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.randint(arguments.classes, (count,), generator=generator)
    task_ids = torch.arange(arguments.tasks).repeat_interleave(arguments.images)
    inputs = {"pixel_values": pixels, "task_ids": task_ids, "labels": labels}
    return Batch.checked(inputs, model.active_jscpt_config.tasks, torch.device(arguments.device))


def trainable(model: PeftModel) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def precision(batch: Batch, dtype: str) -> AbstractContextManager:
    return torch.autocast(batch[0].device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def baseline_step(model: PeftModel, batch: Batch, dtype: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses `[N]` and gradients of their sum: prompts concatenated, texts of 77 tokens, one task at a time.

    Each task has its own backward: one backward of the sum makes the same products, but would keep all tasks'
    activations (13 GB instead of 5 GB on ViT-B/16), and fetching that memory would slow the baseline down.
    """
    pixels, task_ids, labels = batch[:3]
    losses, gradients = [], []
    for task in range(len(model.task_names)):
        with precision(batch, dtype):
            loss = task_loss(model, task, pixels[task_ids == task], labels[task_ids == task])
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, trainable(model)))
    return torch.stack(losses), tuple(sum(each) for each in zip(*gradients, strict=True))


def task_loss(model: PeftModel, task: int, pixels: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3 of one task by the oracle, from the model's own parameters."""
    clip, by_task = prompted.PlainClip(model.get_base_model()), model.task_parameters()
    token_ids = list(model.active_jscpt_config.class_token_ids.values())[task]
    classes = oracles.text_features(clip, by_task["text"][task], token_ids, length=77)
    x = oracles.image_features(clip, by_task["vision"][task], pixels)
    head = model.task_adapter.head.task_parameters()
    selection = {name.replace("mask", "mask_logits"): each[task] for name, each in head.items()}
    return oracles.task_loss(clip, oracles.intervention(x, **selection), classes, labels)


def joint_step(model: PeftModel, batch: Batch, dtype: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same on the fast path: plain joint training of all tasks."""
    with precision(batch, dtype):
        losses = model.classify(batch[0], batch.known, batch[2]).task_losses
    return losses.detach(), torch.autograd.grad(losses.sum(), trainable(model))


def accumulated(
    step: Callable[..., tuple], model: PeftModel, batches: Sequence[Batch], dtype: str
) -> Sequence[Tensor]:
    """Gradients of `baseline_step` or `joint_step` on one batch after the other, added up."""
    gradients = (step(model, batch, dtype)[1] for batch in batches)
    return reduce(lambda total, more: list(map(add, total, more)), gradients)


def lower_sums(model: PeftModel, batches: Sequence[Batch], dtype: str) -> TaskSums:
    with results_held():
        parts = [
            task_gradients(model, batch, "original", forward_context=precision(batch, dtype))[0] for batch in batches
        ]
    return reduce(add, (part.detach() for part in parts))


def weigh(model: PeftModel, weighting: Weighting, step: TaskMeans) -> Tensor:
    return weighting(step.signals(1, 0, shared_gramian(model, step.gradients)))


def lower_step(model: PeftModel, weighting: Weighting, batches: Sequence[Batch], dtype: str) -> tuple[Tensor, ...]:
    """A step of Algorithm 1 as `JSCPTTrainer` makes it, optimizer aside."""
    step = lower_sums(model, batches, dtype).means()
    weights = weigh(model, weighting, step).detach()
    return scheduled_gradient(model.task_parameters(), trainable(model), step.gradients, weights)


def upper_step(
    model: PeftModel,
    weighting: Weighting,
    batches: Sequence[Batch],
    dev_batch: Batch,
    dtype: str,
    terms: int = NEUMANN_TERMS,
    method: str = "exact",
    batch_size: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, ...]:
    """A lower step and the implicit gradient of Ω with it; one graph serves both where `JSCPTTrainer` keeps it."""
    parameters, kept = trainable(model), None
    if len(batches) == 1 and terms and method == "exact" and batch_size is None and chunk_size is None:
        kept = kept_graph(model, batches[0], "original")
    step = (lower_sums(model, batches, dtype) if kept is None else kept.sums.detach()).means()
    weights = weigh(model, weighting, step)
    _, dev = dev_gradient(model, parameters, hessian_chunks([dev_batch], None, chunk_size))
    product = None
    if terms:
        chunks = hessian_chunks(batches, batch_size, chunk_size)
        product = HessianProduct(model, parameters, chunks, weights, method, kept)
    by_task, omega = model.task_parameters(), list(weighting.parameters())
    implicit_gradient(by_task, parameters, step.gradients, weights, omega, dev, product, terms, step_size=1.0)
    return scheduled_gradient(by_task, parameters, step.gradients, weights.detach())


def check_agreement(model: PeftModel, batch: Batch) -> None:
    """Raises a `RuntimeError` unless baseline and fast path have the same losses and gradients in float32."""
    losses, gradients = joint_step(model, batch, "float32")
    exact_losses, exact_gradients = baseline_step(model, batch, "float32")
    pairs = [("gradients", *pair) for pair in zip(gradients, exact_gradients, strict=True)]
    for name, ours, exact in [("losses", losses, exact_losses), *pairs]:
        error = float((ours - exact).norm() / exact.norm())
        if not error <= TOLERANCE:  # also where it is NaN
            raise RuntimeError(
                f"The {name} of baseline and fast path differ by {error:.1e} of their norm (at most {TOLERANCE}): "
                "they are not the same function, and their times cannot be compared."
            )
