"""What a training step costs on the fast path, against concatenating prompts as public prompt-learning code does.

    python recipes/benchmark.py --quick
    python recipes/benchmark.py --model vit_l14 --device cuda --dtype bfloat16 --json benchmark.json
    python recipes/benchmark.py --quick --compare benchmark.json
    python recipes/benchmark.py --case classes --model vit_b16

On CPUs under glibc it starts itself anew with an allocator that keeps freed memory, as the one for GPUs does:
otherwise each large tensor is fetched from the kernel page by page, and upper steps take about 1.4 times as long.

All variants run on the same random weights, prompts and images, in turn, so that what else the machine does meanwhile
meets them alike. Before anything is timed, the baseline and the fast path must agree. A matrix product of the step's
own size and precision runs among them: it says what the machine can do at that moment.

Code of others, such as MVLPT's, is timed in turn with them where `--peer FILE` says how one makes a step of it:
`make_step(arguments)` in FILE gets this program's arguments and returns a function without any.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import torch
from arguments import RecipeParser
from benchmark_cases import CASES
from benchmark_compare import noise_of, read_report, worsened
from benchmark_steps import (
    SHAPES,
    accumulated,
    baseline_step,
    check_agreement,
    joint_step,
    lower_step,
    random_batch,
    random_model,
    upper_step,
)
from cli_errors import cli_errors
from measuring import count_flops, measure
from rich.console import Console
from rich.table import Table

from jscpt_peft.methods import METHODS
from jscpt_peft.scheduling import JointScheduling, TaskPromptScheduler
from jscpt_peft.settings import OneOf, PositiveInt, check_settings, setting

LOWER_STEPS = 10  # M of Algorithm 1
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}  # bytes
KEEP_MEMORY["MALLOC_TOP_PAD_"] = str(256 << 20)
BASELINE, JOINT, LOWER, UPPER = "baseline", "fast joint", "full lower step", "upper step"
PEER, PRODUCT, FRACTION = "peer", "matrix product", "fraction of the matrix-product rate"


@dataclass
class BenchmarkArguments:
    """Everything that the command line can set."""

    case: Annotated[str, OneOf(["step", *CASES])] = setting("step", f"What is measured: step, {', '.join(CASES)}.")
    quick: bool = setting(False, "Leave out the upper steps and their FLOPs.")
    model: Literal["vit_b16", "vit_b32", "vit_l14", "small", "tiny"] = setting("vit_b16", "Shape.")
    method: Annotated[str, OneOf(METHODS)] = setting("jscpt", "Method; others than jscpt have no baseline here.")
    tasks: PositiveInt = setting(4, "Number of tasks.")
    images: PositiveInt = setting(4, "Images of every task in a batch.")
    gradient_accumulation_steps: PositiveInt = setting(1, "Batches of a step.")
    classes: PositiveInt = setting(65, "Classes of every task, of one to four words each.")
    tokens: PositiveInt = setting(16, "Shared prompt tokens, and as many of every task's own.")
    prompt_depth: PositiveInt | None = setting(None, "Blocks with prompts of their own. Default: all.")
    baseline: bool = setting(True, "Time the baseline too, with which the fast path must agree.")
    activation_checkpointing: bool = setting(False, "Compute every block anew in the backward pass.")
    repeats: PositiveInt = setting(3, "Timed runs of every variant; the median counts.")
    cpu_time: bool = setting(
        False, "Seconds that one CPU spent instead of those of the clock, for a machine that does other work too."
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "bfloat16: autocast.")
    device: str = setting("cpu", "cpu or cuda.")
    json: str | None = setting(None, "A file to write the figures to as well.")
    peer: str | None = setting(
        None, "A Python file whose `make_step(arguments)` gives a step of other code, to be timed."
    )
    compare: str | None = setting(None, "Such a file: fail where a ratio has worsened beyond its noise.")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.compare is not None and self.case != "step":
            raise ValueError(f"`compare` needs ratios, which `case` {self.case!r} has none of: leave it out.")
        if self.cpu_time and (self.device != "cpu" or torch.get_num_threads() > 1):
            raise ValueError("`cpu_time` is that of one thread on the CPU: set OMP_NUM_THREADS=1 and `--device cpu`.")
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise ValueError(f"`json` {self.json!r} is in a folder that does not exist: make it first.")


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


def environment(arguments: BenchmarkArguments) -> dict[str, str | int]:
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine()
    device = {"device": f"{arguments.device} ({name})", "dtype": arguments.dtype}
    step = {"batches a step": arguments.gradient_accumulation_steps}
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), **device, **step}


def ratios(seconds: dict[str, float], flops: dict[str, int]) -> dict[str, float]:
    """Of the seconds of one round, or of medians."""
    found = {
        f"{name} / {JOINT}": seconds[name] / seconds[JOINT] for name in (BASELINE, PEER, LOWER) if name in seconds
    }
    if PRODUCT in seconds:
        rate = flops[PRODUCT] / seconds[PRODUCT]
        found[FRACTION] = flops[JOINT] / seconds[JOINT] / rate
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
    table = Table("variant", "seconds", f"/ {JOINT}", "peak GB", "TFLOP")
    for name, seconds in report["seconds"].items():
        peak, flops = report["peak_bytes"][name], report["flops"].get(name)
        memory = f"{peak / 1e9:.2f}" if peak is not None else "?"
        counted = "" if flops is None else f"{flops / 1e12:.3f}"
        table.add_row(name, f"{seconds:.3f}", f"{seconds / report['seconds'][JOINT]:.2f}", memory, counted)
    Console().print(table)
    for name, ratio in report["ratios"].items():
        print(f"{name} = {ratio:.2f} ± {report['noise'].get(name, 0):.2f}")
    print(", ".join(f"{name} {value}" for name, value in report["environment"].items()))


def make_variants(arguments: BenchmarkArguments) -> dict[str, Callable[[], object]]:
    """All that is measured, on one model; baseline and fast path agree on it."""
    model, dtype = random_model(arguments), arguments.dtype
    dev_batch, *batches = (
        random_batch(model, arguments, seed) for seed in range(1 + arguments.gradient_accumulation_steps)
    )
    weighting = JointScheduling(TaskPromptScheduler(arguments.tasks)).to(arguments.device)
    variants: dict[str, Callable[[], object]] = {}
    if arguments.baseline and arguments.method == "jscpt":
        check_agreement(model, batches[0])
        variants[BASELINE] = partial(accumulated, baseline_step, model, batches, dtype)
    variants[JOINT] = partial(accumulated, joint_step, model, batches, dtype)
    variants[LOWER] = partial(lower_step, model, weighting, batches, dtype)
    if not arguments.quick:
        for name, options in upper_variants(arguments).items():
            variants[name] = partial(upper_step, model, weighting, batches, dev_batch, dtype, **options)
    if arguments.peer is not None:
        variants[PEER] = runpy.run_path(arguments.peer)["make_step"](arguments)
    return {**variants, PRODUCT: matrix_product(arguments)}


def matrix_product(arguments: BenchmarkArguments) -> Callable[[], object]:
    """The widest product of the vision tower, over the patches of a batch, four times."""
    width, (size, patch) = SHAPES[arguments.model]["vision"][0], SHAPES[arguments.model]["image"]
    rows = arguments.tasks * arguments.images * (1 + (size // patch) ** 2)
    kind = {"dtype": getattr(torch, arguments.dtype), "device": arguments.device}
    first, second = torch.randn(rows, width, **kind), torch.randn(width, 4 * width, **kind)
    return lambda: [first @ second for _ in range(4)]


def measured(arguments: BenchmarkArguments) -> dict:
    """Seconds, ratios with their noise, FLOPs and memory of the variants."""
    variants = make_variants(arguments)
    rounds, peaks = measure(variants, arguments.repeats, arguments.device, arguments.cpu_time)
    counted = (JOINT, PRODUCT) if arguments.quick else variants
    flops = {name: count_flops(variants[name]) for name in counted}
    seconds = {name: median(each) for name, each in rounds.items()}
    each_round = [ratios(dict(zip(rounds, one, strict=True)), flops) for one in zip(*rounds.values(), strict=True)]
    report = {"seconds": seconds, "ratios": ratios(seconds, flops), "noise": noise_of(each_round)}
    report |= {"flops": flops, "peak_bytes": peaks}
    return report | {"arguments": asdict(arguments), "environment": environment(arguments)}


def main(arguments: BenchmarkArguments) -> dict:
    """The report; a `SystemExit` that says so where a ratio has worsened."""
    before = None if arguments.compare is None else read_report(arguments.compare)
    if arguments.case == "step":
        report = measured(arguments)
        print_report(report)
    else:
        report = {"rows": CASES[arguments.case](arguments, measured)}
        report |= {"arguments": asdict(arguments), "environment": environment(arguments)}
        for row in report["rows"]:
            print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in row.items()))  # fmt: skip
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.compare is not None:
        lines = worsened(before, report)
        if lines:
            sys.exit("\n".join(lines))
    return report


if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**KEEP_MEMORY, **os.environ})
    with cli_errors():
        main(RecipeParser(BenchmarkArguments, description=__doc__).parse_dataclasses(None)[0])
