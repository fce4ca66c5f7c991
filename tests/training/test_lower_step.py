"""Lower steps that are recorded and replayed, or whose blocks are compiled, give what plain ones do."""

from __future__ import annotations

from contextlib import nullcontext

import oracles
import prompted
import pytest
import small_run
import torch

from jscpt_peft.training import JSCPTTrainingArguments
from jscpt_peft.training.lower_step import LowerStep
from jscpt_peft.training.step_graphs import WARM_UP, StepGraphs
from jscpt_peft.training.task_gradients import task_gradients


def same(one, other):
    for first, second in zip(one._tensors(), other._tensors(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-10)


def test_replays_read_the_batch_and_the_parameters_of_now():
    """On a CPU the recording is a function of the same tensors that writes into the same results."""
    model, recorded, replays = prompted.prompted_clip(), [], []

    def step(batch):
        return task_gradients(model, batch, "original")[0]

    def record(function, batch):
        recorded.append(batch)
        sums = function(batch)

        def replay():
            replays.append(batch)
            for held, new in zip(sums._tensors(), function(batch)._tensors(), strict=True):
                held.copy_(new)
            return sums

        return replay

    graphs, results = StepGraphs(step, record), []
    for seed in range(WARM_UP + 3):
        batch = prompted.batch_in_blocks(model, 2, seed)
        results.append((graphs(batch), step(batch)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.01)
    assert len(recorded) == 1 and len(replays) == 3
    mixed, larger = (
        prompted.batch_in_blocks(model, 2, 9).rows(torch.tensor([3, 0, 5])),
        prompted.batch_in_blocks(model, 3, 9),
    )
    results += [(graphs(odd), step(odd)) for odd in (mixed, larger)]
    assert len(replays) == 3, "odd batches are no replays"
    for found, expected in results:  # at the end: a result is not overwritten by later ones
        same(found, expected)
    graphs.forget()
    for seed in range(WARM_UP + 1):
        graphs(prompted.batch_in_blocks(model, 3, seed))
    assert recorded[1].known.each == 3


@pytest.fixture
def arguments(tmp_path):
    return lambda **options: JSCPTTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **options)


def test_compiled_blocks(arguments):
    """Blocks of one shape share one graph, however many they are."""
    model = prompted.prompted_clip(clip=oracles.tiny_clip(layers=4))
    batch = prompted.batch_in_blocks(model)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (
        LowerStep(model, arguments(compile_blocks=backend), True, nullcontext, None)(batch, keep=False)[0]
        for backend in (None, "aot_eager")
    )
    same(compiled, plain)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


def test_a_run_on_a_cpu_says_that_it_records_no_steps(tmp_path, caplog):
    run = small_run.trainer(tmp_path, cuda_graphs="auto", max_steps=1)
    assert run.lower_step.graphs is None
    assert "`cuda_graphs='auto'` records no steps: there is no CUDA device here, but 'cpu'" in caplog.text


def test_the_base_model_is_looked_at_again_after_a_log(arguments):
    model = prompted.prompted_clip()
    step, batch = LowerStep(model, arguments(), True, nullcontext, None), prompted.batch_in_blocks(model)
    before, *_ = step(batch, keep=False)
    with torch.no_grad():
        model.get_base_model().text_model.base_layer.embeddings.token_embedding.weight.mul_(2)
    step.look()
    after, *_ = step(batch, keep=False)
    assert not torch.allclose(after.losses, before.losses)
    same(after, task_gradients(model, batch, "original")[0])
