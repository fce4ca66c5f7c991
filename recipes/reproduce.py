"""Makes one table of methods: trains every method with every seed, and tells how sure the differences are.

    python recipes/reproduce.py --table icons --output_dir outputs/icons
    python recipes/reproduce.py --table icons --methods jscpt "coop --single_task" "jscpt --class_residual both" \
        --seeds 1 2 3 --max_steps 100
    python recipes/reproduce.py --table office_home --data_root DATA

A method is a name with further arguments of recipes/train.py; arguments that are not listed below go to every run. The
learning rate of each method is chosen on validation images, by the same grid for all, with the same steps and images
of a step. Test images are seen once, by the runs with the chosen rates. A run that diverges ends alone and is told of.
After an interruption the same command goes on. Writes results.parquet (a row for each run and task), results.md and
figures: of growing training data, and of the trainings of JSCPT and plain joint training.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
from cli_errors import cli_errors, console
from idle import OF_TABLES, tell_idle
from kept_features import learns_in_image_encoder
from launched import end_with_parent
from measured_run import KINDS, ZERO_SHOT, Run, measure, parsed
from reproduced_figures import draw_runs
from reproduced_results import write_tables
from reproduced_tables import TABLES

from jscpt_peft.choices import check_choice
from jscpt_peft.settings import Between, Name, PositiveInt, PositiveRate, check_setting

Seed = Annotated[int, Between(0, 2**32 - 1)]
SEARCH_SEED = 0  # of the runs by which learning rates are chosen
FACTORS = (0.3, 1.0, 3.0)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, choices=TABLES)
    parser.add_argument("--settings", nargs="+", help="parts of the table; default: all")
    parser.add_argument("--methods", nargs="+", help="rows of the table, in quotes with arguments; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS, help="of the learning rate; 1 tries none")
    parser.add_argument(
        "--rates_from",
        help="the part of the table that learning rates are chosen on, for all; default: each part its own",
    )
    parser.add_argument(
        "--kept_views",
        type=int,
        default=0,
        help="image features of so many crops, computed once; methods that learn in the image encoder see images",
    )
    parser.add_argument("--reference", help="the method to compare with; default: jscpt, if it is there")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/reproduce/TABLE")
    parser.add_argument(
        "--processes", type=int, help="runs at a time, of one thread each; default: one per CPU or GPU"
    )
    options, everywhere = parser.parse_known_args(command_line)
    with cli_errors():
        reproduce(options, everywhere)


def reproduce(options: argparse.Namespace, everywhere: Sequence[str]) -> None:
    """Does what is missing of a table, and writes the table anew now and then."""
    table, output = TABLES[options.table], options.output_dir or Path("outputs", "reproduce", options.table)
    check_options(options, options.methods or table.methods)
    for setting in (*(options.settings or ()), *([options.rates_from] if options.rates_from else [])):
        check_choice("settings", setting, table.settings)
    words = {setting: (*shlex.split(text), *everywhere) for setting, text in table.settings.items()}
    searches = {}
    for setting in options.settings or table.settings:
        place = options.rates_from or setting
        for method in options.methods or table.methods:  # parses all, so that a wrong word is told at once
            searches[setting, method] = candidates(place, method, words[place], options.factors, options.kept_views)
    tell_idle(KINDS, everywhere, OF_TABLES | ({"jpeg_side"} if options.kept_views else set()))
    with run_all(options.processes or torch.cuda.device_count() or os.cpu_count() or 1, output) as do:
        output.mkdir(parents=True, exist_ok=True)
        searched = [run for runs in dict.fromkeys(searches.values()) if len(runs) > 1 for run in runs]
        do(searched, "learning rates")
        chosen = [
            replace(best(runs, output), setting=setting, words=words[setting])
            for (setting, _), runs in searches.items()
        ]
        finals = [replace(run, seed=seed, split="test") for seed in options.seeds for run in chosen]
        write = partial(write_tables, options.table, options.reference, output, [*searched, *finals])
        do(finals, "test", now_and_then(write))
    write()
    first = options.seeds[0]
    drawn = draw_runs([run for run in finals if run.seed == first and "diverged" not in run.result(output)], output)
    with (output / "results.md").open("a", encoding="utf-8") as file:
        file.write(f"\n## Figures as in the paper, of seed {first}\n\n{drawn}\n")
    console.print((output / "results.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)


def check_options(options: argparse.Namespace, methods: Sequence[str]) -> None:
    """Raises a `ValueError` where a value is out of its range, or given twice: a mean would count it twice."""
    annotations = {"seeds": Seed, "factors": PositiveRate, "methods": Name, "settings": Name}
    for name, annotation in annotations.items():
        values = getattr(options, name) or []
        for value in values:
            check_setting(name, value, annotation)
        if len(set(values)) < len(values):
            raise ValueError(f"`{name}` holds one of {list(values)} twice: give each once.")
    check_setting("processes", options.processes, PositiveInt | None)
    if options.reference is not None:
        check_choice("reference", options.reference, methods)
    options.reference = options.reference or "jscpt"
    if options.output_dir is not None and options.output_dir.exists() and not options.output_dir.is_dir():
        raise ValueError(f"`output_dir` {str(options.output_dir)!r} is no folder: choose another.")


def now_and_then(function: Callable[[], Any], seconds: float = 60.0) -> Callable[[], None]:
    """Calls the function at its first call, and then at most once in so many seconds, or in 20 times what it took."""
    after = -math.inf

    def call() -> None:
        nonlocal after
        started = perf_counter()
        if started >= after:
            function()
            after = perf_counter() + max(seconds, 20 * (perf_counter() - started))

    return call


def candidates(
    setting: str, method: str, words: tuple[str, ...], factors: Sequence[float], views: int
) -> tuple[Run, ...]:
    """Runs with the learning rates to choose among: the method's own on this task set, times each factor."""
    _, model_arguments, training = parsed([*words, "--output_dir", "unused"], method)
    views = 0 if method != ZERO_SHOT and learns_in_image_encoder(model_arguments) else views
    rates = [0.0] if method == ZERO_SHOT else [float(f"{training.learning_rate * factor:.3g}") for factor in factors]
    return tuple(Run(setting, method, words, rate, SEARCH_SEED, "validation", views) for rate in rates)


def best(runs: Sequence[Run], output: Path) -> Run:
    """The run with the highest mean validation accuracy, the first of several; one that diverged comes last."""
    if len(runs) == 1:
        return runs[0]
    results = {run: run.result(output) for run in runs}
    sound = [run for run in runs if "diverged" not in results[run]]
    return max(sound, key=lambda run: np.mean(list(results[run]["accuracy"].values())), default=runs[0])


@contextmanager
def run_all(processes: int, output: Path) -> Iterator[Callable[..., None]]:
    """Within, what does runs, so many at a time, and calls a function after each; one process is this one."""
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn = get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, begin_process, (os.getpid(),)) if processes > 1 else None

    def do(runs: Sequence[Run], title: str, after: Callable[[], Any] = lambda: None) -> None:
        missing = [run for run in runs if run.result(output) is None]
        if pool is None:
            done = (measure(run, output) for run in missing)
        else:
            done = (each.result() for each in as_completed([pool.submit(measure, run, output) for run in missing]))
        for number, _ in enumerate(done, 1):
            console.print(f"{title}: {len(runs) - len(missing) + number} of {len(runs)} runs")
            after()

    wait = True
    try:
        yield do
    except KeyboardInterrupt:
        wait = False
        for process in active_children() if pool is not None else ():
            process.terminate()
        raise KeyboardInterrupt(f"what is done is in {output}, and the same command goes on.") from None
    except BrokenProcessPool as error:
        raise OSError(
            "a process was ended from outside, as where memory is short: the same command goes on, perhaps with fewer "
            "`processes`."
        ) from error
    finally:
        if pool is not None:
            pool.shutdown(wait, cancel_futures=True)


def begin_process(parent: int) -> None:
    """A process of the pool computes on one thread, and ends without a word when its parent does, or with Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent(parent)
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
