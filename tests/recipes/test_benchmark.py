"""The benchmark compares the same function, and reports what it measured."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "benchmark.py"
RATIOS = ["baseline / fast joint", "full lower step / fast joint"]
SMALL = {"model": "tiny", "tasks": 2, "images": 2, "classes": 5, "repeats": 1}


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("benchmark", RECIPE)
    module = importlib.util.module_from_spec(specification)
    sys.modules["benchmark"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["benchmark"]


def parse(benchmark, line):
    return benchmark.HfArgumentParser(benchmark.BenchmarkArguments).parse_args_into_dataclasses(line.split())[0]


def test_quick_run_prints_ratios_and_writes_json(benchmark, tmp_path, capsys):
    path = tmp_path / "benchmark.json"
    line = f"--quick --model tiny --tasks 2 --images 2 --classes 5 --repeats 2 --json {path}"
    benchmark.main(parse(benchmark, line))
    printed, report = capsys.readouterr().out, json.loads(path.read_text())
    assert list(report["ratios"]) == RATIOS
    assert report["flops"] == {}
    for name, ratio in report["ratios"].items():
        assert ratio > 0
        assert f"{name} = {ratio:.2f}" in printed
    assert torch.__version__ in printed
    assert "float32" in printed


def test_full_run_adds_the_upper_step_and_flops(benchmark, capsys):
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


def test_bfloat16_runs(benchmark):
    report = benchmark.main(benchmark.BenchmarkArguments(quick=True, dtype="bfloat16", **SMALL))
    assert all(ratio > 0 for ratio in report["ratios"].values())


@pytest.mark.parametrize("part", ["losses", "gradients"])
def test_variants_that_disagree_are_not_timed(benchmark, monkeypatch, part):
    exact = benchmark.baseline_step

    def other(*arguments):
        losses, gradients = exact(*arguments)
        if part == "losses":
            return losses * 1.001, gradients
        return losses, (gradients[0] * 1.001, *gradients[1:])

    monkeypatch.setattr(benchmark, "baseline_step", other)
    with pytest.raises(RuntimeError, match=f"The {part} of baseline and fast path differ"):
        benchmark.main(benchmark.BenchmarkArguments(quick=True, **SMALL))


def test_median_leaves_the_warm_up_out(benchmark, monkeypatch):
    # Two variants in turn, each between two readings; the round before them, which warms up, is not timed.
    readings = iter([time for duration in (1, 2, 9) for _ in range(2) for time in (0.0, duration)])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(readings))
    order = []
    seconds, _ = benchmark.measure({name: lambda name=name: order.append(name) for name in "ab"}, 3, "cpu")
    assert seconds == {"a": 2, "b": 2}
    assert order == list("abababab")


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux counts the peak memory of a process"
)
def test_peak_memory_is_that_of_the_run(benchmark):
    peaks = [benchmark.peak_memory(lambda size=size: torch.ones(size).sum(), "cpu") for size in (1, 100_000_000, 1)]
    assert peaks[1] - peaks[0] == pytest.approx(4e8, rel=0.1)
    assert peaks[2] - peaks[0] < 4e7


def test_amortised_cost_of_the_bi_level_loop(benchmark):
    """Issue: at most 1.6 times plain joint training at M = 10, H = 3, whatever the number of tasks."""
    for tasks in (2, 6):
        arguments = benchmark.BenchmarkArguments(**{**SMALL, "model": "small", "tasks": tasks, "classes": 20})
        report = benchmark.main(arguments)
        assert report["ratios"]["amortised upper step at M = 10 / fast joint, FLOPs"] < 1.6
        assert report["ratios"]["amortised upper step, H = 0 at M = 10 / fast joint, FLOPs"] < 1.15


def test_numbers_below_one_are_refused(benchmark):
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        benchmark.BenchmarkArguments(repeats=0)
