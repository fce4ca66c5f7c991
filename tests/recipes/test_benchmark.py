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
    seconds, ratio = report["seconds"], report["ratios"]["amortised step at M = 10 / fast joint"]
    expected = (9 * seconds["full lower step"] + seconds["upper step"]) / (10 * seconds["fast joint"])
    assert math.isclose(ratio, expected)
    flops = report["flops"]
    assert flops["baseline"] > flops["fast joint"] > 0
    assert flops["upper step"] > 2 * flops["full lower step"]
    assert flops["full lower step"] < 1.05 * flops["fast joint"]
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
    # Two variants in turn, each between two readings: the first round takes 100, the others 1, 2 and 9.
    readings = iter([time for duration in (100, 1, 2, 9) for _ in range(2) for time in (0.0, duration)])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(readings))
    order = []
    seconds = benchmark.measure({name: lambda name=name: order.append(name) for name in "ab"}, 3, "cpu")
    assert seconds == {"a": 2, "b": 2}
    assert order == list("abababab")


def test_numbers_below_one_are_refused(benchmark):
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        benchmark.BenchmarkArguments(repeats=0)
