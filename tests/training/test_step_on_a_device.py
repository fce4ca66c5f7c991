"""What a CPU can prove of a lower step on a GPU: one graph without a break, no look at values, few kernels."""

from __future__ import annotations

from collections import Counter
from functools import partial

import measuring
import oracles
import prompted
import pytest
import torch
from paths import load_recipe
from torch.utils._python_dispatch import TorchDispatchMode

from jscpt_peft.model.cache import results_held
from jscpt_peft.model.task_rows import TaskRows
from jscpt_peft.training.task_gradients import Batch, task_gradients

# Operations that look at values, so that a shape or the host has to wait for the device.
LOOKS = ("_local_scalar_dense", "_unique2", "nonzero", "bincount", "masked_select", "item", "is_nonzero", "equal")
# Kernels of a step of three blocks, of a further block, and casts among the latter; float32 under autocast (bfloat16).
# They were (581, 111, 0) and (789, 171, 60).
MOST_KERNELS = {torch.float64: (511, 103, 0), torch.float32: (641, 137, 16)}


class Operations(TorchDispatchMode):
    """Counts the operations within: name -> how often, those that only view memory apart."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.views = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returns = function._schema.returns
        view = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        (self.views if view else self.kernels)[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


def operations(model, batch, autocast=False) -> Operations:
    def step():
        context = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
        return task_gradients(model, batch, "original", forward_context=context)

    step()  # what is kept is made
    with results_held(), Operations() as counted:
        step()
    return counted


MIDDLE = {"class_token_ids": prompted.in_the_middle(prompted.class_token_ids())}
MIDDLE |= {"class_position": "middle", "prompt_depth": 1}


@pytest.mark.parametrize("options", [{}, MIDDLE], ids=["deep", "middle and carried"])
def test_forward_and_backward_are_one_graph(options):
    model = prompted.prompted_clip(clip=oracles.tiny_clip(layers=2), **options)
    batch = prompted.batch_in_blocks(model)
    eager, _ = task_gradients(model, batch, "original")

    def step(pixels, task_ids, labels):
        known = batch.known._replace(ids=task_ids)
        sums, _ = task_gradients(model, Batch(pixels, task_ids, labels, known), "original")
        return sums.counts, sums.losses, sums.reference_losses, sums.gradients

    torch.compiler.reset()
    with results_held(), torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*batch[:3])
    expected = eager.counts, eager.losses, eager.reference_losses, eager.gradients
    torch.testing.assert_close(compiled, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("options", [{}, MIDDLE], ids=["deep", "middle"])
def test_a_batch_in_blocks_is_never_looked_at_and_gives_what_a_mixed_one_does(options):
    model = prompted.prompted_clip(**options)
    batch = prompted.batch_in_blocks(model)
    assert batch.known.each == 2
    counted = operations(model, batch)
    assert not counted.kernels.keys() & set(LOOKS)
    order = torch.randperm(len(batch.labels), generator=torch.Generator().manual_seed(0))
    mixed, expected = (task_gradients(model, each, "original")[0] for each in (batch.rows(order), batch))
    assert operations(model, batch.rows(order)).kernels.keys() & set(LOOKS)  # the general path does look
    for one, other in zip(mixed._tensors(), expected._tensors(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "most"), MOST_KERNELS.items(), ids=str)
def test_number_of_kernels(dtype, most):
    """Of a step, and what a further block of both towers adds; and how many of them are casts."""
    counted = []
    for layers in (3, 4):
        model = prompted.prompted_clip(dtype, clip=oracles.tiny_clip(layers=layers, dtype=dtype))
        counted.append(operations(model, prompted.batch_in_blocks(model), autocast=dtype == torch.float32).kernels)
    first, second = counted
    found = first.total(), second.total() - first.total(), second["_to_copy"] - first["_to_copy"]
    print(f"{dtype}: {found}")
    assert all(one <= other for one, other in zip(found, most, strict=True))


def test_the_forward_pass_makes_the_unavoidable_products_alone():
    """Prompts once per task, a class's own words, and behind the last attention the position that is read."""
    model = prompted.prompted_clip()
    batch, texts = prompted.batch_in_blocks(model), model.base_model.class_features.texts
    prompts = {tower: each.detach() for tower, each in model.task_parameters().items()}
    model.class_embeds()  # what `[SOS]` gives is kept
    clip = model.get_base_model().config
    n, tasks, depth, projection = prompts["text"].shape[2], len(prompted.TASKS), 3, clip.projection_dim

    def blocks(rows, tokens, start, width):
        wide, narrow, keys = tokens * width * 2 * width, 2 * width * width, 2 * tokens * width * width
        each = rows * (keys + 2 * tokens * width * width + 2 * wide + 2 * tokens * (tokens + n + start) * width)
        last = rows * (keys + 2 * width * width + 2 * narrow + 2 * (tokens + n + start) * width)
        return 2 * ((depth - 1) * each + last + depth * tasks * 2 * n * width * width)

    words, width, images = texts.words.shape[1], clip.text_config.hidden_size, len(batch.labels)
    text = blocks(len(texts.labels), words, 1, width) + 2 * len(texts.labels) * width * projection
    width, patch = clip.vision_config.hidden_size, clip.vision_config.patch_size
    patches = (clip.vision_config.image_size // patch) ** 2
    vision = blocks(images, 1 + patches, 0, width) + 2 * images * width * (patches * 3 * patch**2 + projection)
    backbone = model.base_model.backbone
    assert measuring.count_flops(lambda: backbone.text_features(texts, prompts["text"])) == text
    assert measuring.count_flops(lambda: backbone.image_features(batch[0], batch.known, prompts["vision"])) == vision
    # A second backward would make it three times the forward pass, and more.
    assert measuring.count_flops(lambda: task_gradients(model, batch, "original")) < 2.5 * (text + vision)


def test_an_update_of_omega_makes_h_products():
    benchmark = load_recipe("benchmark")
    arguments = benchmark.BenchmarkArguments(model="tiny", tasks=2, images=2, classes=3)
    model = benchmark.random_model(arguments)
    batch, dev = (benchmark.random_batch(model, arguments, seed) for seed in (0, 1))
    weighting = benchmark.JointScheduling(benchmark.TaskPromptScheduler(2))
    upper = partial(benchmark.upper_step, model, weighting, [batch], dev, "float32")
    upper(0)  # what `[SOS]` gives is kept
    costs = [measuring.count_flops(partial(upper, terms)) for terms in (1, 2, 3)]
    assert 0 < costs[2] - costs[1] == pytest.approx(costs[1] - costs[0], rel=0.02)


def test_places_of_tasks():
    ids = torch.tensor([4, 1, 4])
    rows, by_task = TaskRows.of(ids), torch.arange(6.0)
    assert rows[1:] == ((1, 4), None)
    assert rows.spread(rows.choose(by_task)).tolist() == [4, 1, 4]
    assert rows.sums(torch.ones(3), 6).tolist() == [0, 1, 0, 0, 2, 0]
    blocks = TaskRows.of(torch.tensor([1, 1, 4, 4]))
    assert blocks[1:] == ((1, 4), 2)
    assert blocks.spread(blocks.choose(by_task)).tolist() == blocks.repeated(1).ids.tolist() == [1, 1, 4, 4]
    assert TaskRows.of(torch.tensor([4, 4, 1, 1])).each is None
    assert TaskRows.of(torch.tensor([], dtype=torch.long))[1:] == ((), None)
