"""The benchmark compares the same function, and reports what it measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import benchmark_cases
import benchmark_compare
import benchmark_memory
import benchmark_steps
import measuring
import oracles
import prompted
import pytest
import small_run
import torch
from paths import load_recipe

from jscpt_peft.model import class_features

benchmark = load_recipe("benchmark")
RATIOS = {f"{name} / fast joint" for name in ("baseline", "peer", "full lower step")}
RATIOS |= {"fraction of the matrix-product rate"}
SMALL = {"model": "tiny", "tasks": 2, "images": 2, "classes": 5, "repeats": 1}
# Upper steps of `upper_step` under the names that `JSCPTTrainingArguments` has for its options.
OPTIONS = {
    "terms": "neumann_terms",
    "method": "hvp",
    "batch_size": "hypergradient_batch_size",
    "chunk_size": "hypergradient_chunk_size",
}


def flops(*uppers, **options):
    """Of the fast joint step, the lower step and these upper steps."""
    variants = benchmark.make_variants(benchmark.BenchmarkArguments(**{**SMALL, "baseline": False, **options}))
    return {name: measuring.count_flops(variants[name]) for name in ("fast joint", "full lower step", *uppers)}


def test_quick_run_prints_ratios_times_a_peer_and_fails_where_a_ratio_has_worsened(tmp_path, capsys, monkeypatch):
    path, peer = tmp_path / "benchmark.json", tmp_path / "peer.py"
    peer.write_text("def make_step(arguments):\n    return lambda: [0] * arguments.classes\n")
    options = {**SMALL, "quick": True, "repeats": 2, "gradient_accumulation_steps": 3, "dtype": "bfloat16"}
    benchmark.main(benchmark.BenchmarkArguments(**options, json=str(path), peer=str(peer)))
    printed, report = capsys.readouterr().out, json.loads(path.read_text())
    assert set(report["ratios"]) == RATIOS
    assert list(report["flops"]) == ["fast joint", "matrix product"]
    for name, ratio in report["ratios"].items():
        assert ratio > 0
        assert f"{name} = {ratio:.2f} ± {report['noise'][name]:.2f}" in printed
    assert report["ratios"]["peer / fast joint"] == report["seconds"]["peer"] / report["seconds"]["fast joint"]
    assert torch.__version__ in printed
    assert "bfloat16, batches a step 3" in printed

    monkeypatch.setattr(benchmark, "measured", lambda _: report)
    compared = benchmark.BenchmarkArguments(**options, peer=str(peer), compare=str(path))
    assert benchmark.main(compared) is report
    report["ratios"]["full lower step / fast joint"] *= 1000
    with pytest.raises(SystemExit, match="full lower step / fast joint has worsened"):
        benchmark.main(compared)


def test_full_run_adds_the_upper_step_and_flops(capsys):
    report = benchmark.main(benchmark.BenchmarkArguments(**SMALL))
    for unit, costs in {"seconds": report["seconds"], "FLOPs": report["flops"]}.items():
        ratio = report["ratios"][f"amortised upper step at M = 10 / fast joint, {unit}"]
        expected = (9 * costs["full lower step"] + costs["upper step"]) / (10 * costs["fast joint"])
        assert math.isclose(ratio, expected)
    flops = report["flops"]
    assert flops["baseline"] > flops["fast joint"] > 0
    assert flops["upper step"] > 2 * flops["full lower step"]
    assert flops["full lower step"] < 1.05 * flops["fast joint"]
    assert flops["upper step, H = 0"] < flops["upper step"] < flops["upper step, task by task"]
    assert all(peak > 0 for peak in report["peak_bytes"].values())
    assert "TFLOP" in capsys.readouterr().out


# Of the settings that are swept, one; to make and read photographs takes long.
@pytest.mark.parametrize("case", ["prompt_depth", "memory", "loading", "evaluation", "adapter"])
def test_cases(case, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_cases, "PHOTOS", 2)
    monkeypatch.setattr(benchmark_cases, "PHOTO_SIZES", ((500, 375), (1000, 750)))
    rows = benchmark.main(benchmark.BenchmarkArguments(case=case, **SMALL))["rows"]
    assert rows and all(value > 0 for row in rows for value in row.values() if not isinstance(value, str))
    assert len(capsys.readouterr().out.splitlines()) >= len(rows)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux counts the peak memory of a process"
)
def test_memory_that_is_counted_is_that_of_a_step(monkeypatch):
    """What many classes add to the peak."""
    sizes = [benchmark.BenchmarkArguments(**{**SMALL, "classes": classes}) for classes in (5, 3000)]
    counted = [benchmark_memory.step_bytes(each) for each in sizes]
    measured = []
    for each in sizes:
        variants = benchmark.make_variants(replace(each, quick=True, baseline=False))
        measured.append(measuring.peak_memory(variants["full lower step"], "cpu"))
    assert counted[1] - counted[0] == pytest.approx(measured[1] - measured[0], rel=0.25)
    monkeypatch.setattr(class_features, "MOST_TEXTS", 1000)
    at_once, by_task = (
        benchmark_memory.step_bytes(replace(sizes[1], tasks=4, activation_checkpointing=on)) for on in (False, True)
    )
    assert by_task < at_once / 3


def test_only_what_has_worsened_beyond_its_noise_fails():
    settings = {"model": "tiny", "json": None}
    ratios = {"baseline / fast joint": 3.6, "full lower step / fast joint": 1.02}
    noise = dict.fromkeys(ratios, 0.05)
    before = {"ratios": ratios, "noise": noise, "arguments": settings}

    def lines(baseline=3.6):
        now = {**ratios, "baseline / fast joint": baseline}
        return benchmark_compare.worsened(before, {**before, "ratios": now})

    assert lines() == lines(3.52) == lines(4.5) == []
    assert lines(3.4) == ["baseline / fast joint has worsened from 3.600 to 3.400, noise 0.100"]
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        benchmark_compare.worsened(before, {**before, "arguments": {"model": "vit_b16"}})


@pytest.mark.parametrize("content", [None, "[1]", '{"ratios": {"a": NaN}}', '{"ratios": {}, "noise": 3}', "{"])
def test_what_is_no_report_is_told_before_anything_is_timed(tmp_path, monkeypatch, content):
    monkeypatch.setattr(benchmark, "measured", lambda _: pytest.fail("timed"))
    path = tmp_path / "before.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"`compare` .* is no report"):
        benchmark.main(benchmark.BenchmarkArguments(compare=str(path), **SMALL))


@pytest.mark.parametrize("part", ["losses", "gradients"])
def test_variants_that_disagree_are_not_timed(monkeypatch, part):
    exact = benchmark_steps.baseline_step

    def other(*arguments):
        losses, gradients = exact(*arguments)
        if part == "losses":
            return losses * 1.001, gradients
        return losses, (gradients[0] * 1.001, *gradients[1:])

    monkeypatch.setattr(benchmark_steps, "baseline_step", other)
    with pytest.raises(RuntimeError, match=f"The {part} of baseline and fast path differ"):
        benchmark.main(benchmark.BenchmarkArguments(quick=True, **SMALL))


def test_rounds_leave_the_warm_up_out(monkeypatch):
    # Two variants in turn, each between two readings; the round before them, which warms up, is not timed.
    readings = iter([time for duration in (1, 2, 9) for _ in range(2) for time in (0.0, duration)])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(readings))
    order = []
    seconds, _ = measuring.measure({name: lambda name=name: order.append(name) for name in "ab"}, 3, "cpu")
    assert seconds == {"a": [1, 2, 9], "b": [1, 2, 9]}
    assert order == list("abababab")


def test_cpu_time_leaves_waiting_out(monkeypatch):
    seconds, _ = measuring.measure({"a": partial(measuring.time.sleep, 0.2)}, 1, "cpu", cpu_time=True)
    assert seconds["a"][0] < 0.1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match="`cpu_time` is that of one thread on the CPU: set OMP_NUM_THREADS=1"):
        benchmark.BenchmarkArguments(cpu_time=True)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux counts the peak memory of a process"
)
def test_peak_memory_is_that_of_the_run():
    peaks = [measuring.peak_memory(lambda size=size: torch.ones(size).sum(), "cpu") for size in (1, 100_000_000, 1)]
    assert peaks[1] - peaks[0] == pytest.approx(4e8, rel=0.1)
    assert peaks[2] - peaks[0] < 4e7


@pytest.mark.parametrize("tasks", [2, 6])
def test_amortised_cost_of_the_bi_level_loop(tasks):
    """Issue: at most 1.6 times plain joint training at M = 10, H = 3, whatever the number of tasks."""
    uppers = ("upper step", "upper step, H = 0")
    ratios = benchmark.amortised(flops(*uppers, tasks=tasks, classes=20))
    assert ratios["upper step"] < 1.6
    assert ratios["upper step, H = 0"] < 1.15


def test_with_accumulation_fewer_images_in_the_hessian_keep_the_cost_low():
    """README's remedy: the images of one batch in the Hessian have one graph, which serves all products."""
    uppers = ("upper step", "upper step, hypergradient_batch_size 2")
    costs = flops(*uppers, classes=20, gradient_accumulation_steps=2)
    assert costs["full lower step"] == pytest.approx(costs["fast joint"], rel=0.05)
    ratios = benchmark.amortised(costs)
    assert ratios[uppers[1]] < 1.3 < ratios["upper step"] < 1.7


@pytest.mark.parametrize("batches", [1, 2])
def test_steps_cost_what_those_of_the_trainer_do(tmp_path, batches):
    """By FLOPs: the benchmark's copy of the training step keeps graphs where the trainer does, and only there."""
    arguments = benchmark.BenchmarkArguments(tasks=3, images=2, gradient_accumulation_steps=batches)
    weighting = benchmark.JointScheduling(benchmark.TaskPromptScheduler(3))
    variants = list(benchmark.upper_variants(arguments).items())
    for number, (name, given) in enumerate(variants[batches - 1 :: 2]):
        options = {"terms": 2, **given}
        clips = (oracles.tiny_clip(torch.float32, layers=1) for _ in range(2))
        # Each has its own, which keeps what `[SOS]` gives.
        model, trained = (prompted.prompted_clip(torch.float32, clip=clip) for clip in clips)
        images = [prompted.batch_in_blocks(model, arguments.images, seed) for seed in range(batches)]
        run = small_run.trainer(
            tmp_path / str(number),
            trained,
            per_device_train_batch_size=arguments.images,
            gradient_accumulation_steps=batches,
            lower_steps=2,
            max_steps=2,
            **{OPTIONS[option]: value for option, value in options.items()},
        )
        lower = partial(benchmark.lower_step, model, weighting, images, "float32")
        upper = partial(benchmark.upper_step, model, weighting, images, images[0], "float32", **options)
        assert measuring.count_flops(run.train) == measuring.count_flops(lower) + measuring.count_flops(upper), name


@pytest.mark.parametrize("name", ["repeats", "gradient_accumulation_steps"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        benchmark.BenchmarkArguments(**{name: 0})
