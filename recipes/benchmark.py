"""What a training step costs on the fast path, against concatenating prompts as public prompt-learning code does.

    python recipes/benchmark.py --quick
    python recipes/benchmark.py --model vit_l14 --device cuda --dtype bfloat16 --json benchmark.json
    python recipes/benchmark.py --model small --classes 20 --gradient_accumulation_steps 2

On CPUs under glibc it starts itself anew with an allocator that keeps freed memory, as the one for GPUs does:
otherwise each large tensor is fetched from the kernel page by page, and upper steps take about 1.4 times as long.

All variants run on the same random weights, prompts and images, in turn, so that what else the machine does meanwhile
meets them alike. Before anything is timed, the baseline and the fast path must agree.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Literal

import torch
from arguments import RecipeParser
from measuring import count_flops, measure
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.scheduling import JointScheduling, TaskPromptScheduler, Weighting
from jscpt_peft.settings import PositiveInt, check_settings, setting
from jscpt_peft.training.hessian import HessianProduct, hessian_chunks, kept_graph
from jscpt_peft.training.implicit_gradient import dev_gradient, implicit_gradient
from jscpt_peft.training.task_gradients import (
    Batch,
    TaskMeans,
    TaskSums,
    scheduled_gradient,
    shared_gramian,
    task_gradients,
)

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
LOWER_STEPS, NEUMANN_TERMS = 10, 3  # M and H of Algorithm 1
TOLERANCE = 1e-4
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}  # bytes
KEEP_MEMORY["MALLOC_TOP_PAD_"] = str(256 << 20)
BASELINE, JOINT, LOWER, UPPER = "baseline", "fast joint", "full lower step", "upper step"


@dataclass
class BenchmarkArguments:
    """Everything that the command line can set."""

    quick: bool = setting(False, "Leave out the upper steps and the FLOPs.")
    model: Literal["vit_b16", "vit_b32", "vit_l14", "small", "tiny"] = setting("vit_b16", "Shape.")
    tasks: PositiveInt = setting(4, "Number of tasks.")
    images: PositiveInt = setting(4, "Images of every task in a batch.")
    gradient_accumulation_steps: PositiveInt = setting(1, "Batches of a step.")
    classes: PositiveInt = setting(65, "Classes of every task, of one to four words each.")
    repeats: PositiveInt = setting(3, "Timed runs of every variant; the median counts.")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "bfloat16: autocast.")
    device: str = setting("cpu", "cpu or cuda.")
    json: str | None = setting(None, "A file to write the figures to as well.")

    def __post_init__(self) -> None:
        check_settings(self)


def random_model(arguments: BenchmarkArguments) -> PeftModel:
    """A random CLIP of the chosen shapes under 16 shared and 16 task tokens in every block of both towers."""
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
    model = get_peft_model(clip, JSCPTConfig(tasks=tasks, class_token_ids=token_ids))
    with torch.no_grad():  # the MLPs of Eq. 2 start as the identity, under which a difference in them would not show
        for parameter in model.task_adapter.head.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def random_batch(model: PeftModel, arguments: BenchmarkArguments, seed: int) -> Batch:
    """`images` images of every task, tasks mixed."""
    generator = torch.Generator().manual_seed(seed)
    size, count = model.get_base_model().config.vision_config.image_size, arguments.tasks * arguments.images
    pixels, task_ids = torch.randn(count, 3, size, size, generator=generator), torch.arange(arguments.tasks)
    labels = torch.randint(arguments.classes, (count,), generator=generator)
    return Batch(*(each.to(arguments.device) for each in (pixels, task_ids.repeat(arguments.images), labels)))


def trainable(model: PeftModel) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def precision(batch: Batch, dtype: str) -> AbstractContextManager:
    return torch.autocast(batch[0].device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def baseline_step(model: PeftModel, batch: Batch, dtype: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses `[N]` and gradients of their sum: prompts concatenated, texts of 77 tokens, one task at a time.

    Each task has its own backward: one backward of the sum makes the same products, but would keep all tasks'
    activations (13 GB instead of 5 GB on ViT-B/16), and fetching that memory would slow the baseline down.
    """
    pixels, task_ids, labels = batch
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
        losses = model.classify(*batch).task_losses
    return losses.detach(), torch.autograd.grad(losses.sum(), trainable(model))


def accumulated(
    step: Callable[..., tuple], model: PeftModel, batches: Sequence[Batch], dtype: str
) -> Sequence[Tensor]:
    """Gradients of `baseline_step` or `joint_step` on one batch after the other, added up."""
    gradients = (step(model, batch, dtype)[1] for batch in batches)
    return reduce(lambda total, more: list(map(add, total, more)), gradients)


def lower_sums(model: PeftModel, batches: Sequence[Batch], dtype: str) -> TaskSums:
    parts = (task_gradients(model, batch, "original", forward_context=precision(batch, dtype))[0] for batch in batches)
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


def upper_variants(arguments: BenchmarkArguments) -> dict[str, dict[str, int | str]]:
    """The ways to make an upper step, by what `upper_step` is told beside the defaults."""
    images, batches = arguments.images, arguments.gradient_accumulation_steps
    fewer = images if batches > 1 else max(1, images // 2)
    return {
        UPPER: {},
        f"{UPPER}, H = 0": {"terms": 0},
        f"{UPPER}, hypergradient_batch_size {fewer}": {"batch_size": fewer},
        f"{UPPER}, task by task": {"chunk_size": images * batches},
        f"{UPPER}, finite differences": {"method": "finite_difference"},
    }


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


def environment(arguments: BenchmarkArguments) -> dict[str, str | int]:
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine()
    device = {"device": f"{arguments.device} ({name})", "dtype": arguments.dtype}
    step = {"batches a step": arguments.gradient_accumulation_steps}
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), **device, **step}


def ratios(seconds: dict[str, float], flops: dict[str, int]) -> dict[str, float]:
    found = {f"{name} / {JOINT}": seconds[name] / seconds[JOINT] for name in (BASELINE, LOWER)}
    for unit, costs in {"seconds": seconds, "FLOPs": flops}.items():
        for name, ratio in amortised(costs).items():
            found[f"amortised {name} at M = {LOWER_STEPS} / {JOINT}, {unit}"] = ratio
    return found


def amortised(costs: dict[str, float]) -> dict[str, float]:
    """What M steps of the bi-level loop cost beside M of plain joint training, by the kind of upper step."""
    uppers = {name: cost for name, cost in costs.items() if name.startswith(UPPER)}
    lower = (LOWER_STEPS - 1) * costs.get(LOWER, 0)
    return {name: (lower + upper) / (LOWER_STEPS * costs[JOINT]) for name, upper in uppers.items()}


def print_report(report: dict) -> None:
    table = Table("variant", "seconds", f"/ {JOINT}", "peak GB", *(["TFLOP"] if report["flops"] else []))
    for name, seconds in report["seconds"].items():
        peak = report["peak_bytes"][name]
        counted = [f"{report['flops'][name] / 1e12:.3f}"] if report["flops"] else []
        memory = f"{peak / 1e9:.2f}" if peak is not None else "?"
        table.add_row(name, f"{seconds:.3f}", f"{seconds / report['seconds'][JOINT]:.2f}", memory, *counted)
    Console().print(table)
    for name, ratio in report["ratios"].items():
        print(f"{name} = {ratio:.2f}")
    print(", ".join(f"{name} {value}" for name, value in report["environment"].items()))


def make_variants(arguments: BenchmarkArguments) -> dict[str, Callable[[], object]]:
    """All that is measured, on one model; baseline and fast path agree on it."""
    model, dtype = random_model(arguments), arguments.dtype
    dev_batch, *batches = (
        random_batch(model, arguments, seed) for seed in range(1 + arguments.gradient_accumulation_steps)
    )
    check_agreement(model, batches[0])
    weighting = JointScheduling(TaskPromptScheduler(arguments.tasks)).to(arguments.device)
    variants: dict[str, Callable[[], object]] = {
        BASELINE: partial(accumulated, baseline_step, model, batches, dtype),
        JOINT: partial(accumulated, joint_step, model, batches, dtype),
        LOWER: partial(lower_step, model, weighting, batches, dtype),
    }
    if not arguments.quick:
        for name, options in upper_variants(arguments).items():
            variants[name] = partial(upper_step, model, weighting, batches, dev_batch, dtype, **options)
    return variants


def main(arguments: BenchmarkArguments) -> dict:
    variants = make_variants(arguments)
    seconds, peaks = measure(variants, arguments.repeats, arguments.device)
    flops = {} if arguments.quick else {name: count_flops(variant) for name, variant in variants.items()}
    report = {"seconds": seconds, "ratios": ratios(seconds, flops), "flops": flops, "peak_bytes": peaks}
    report.update(arguments=asdict(arguments), environment=environment(arguments))
    print_report(report)
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**KEEP_MEMORY, **os.environ})
    main(RecipeParser(BenchmarkArguments, description=__doc__).parse_dataclasses(None)[0])
