"""Where a recipe writes: checked before anything is read or made, and not left behind empty."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from task_data import DataArguments

from jscpt_peft.data.load import BENCHMARK_TASK_SETS
from jscpt_peft.reading import one_line


@contextmanager
def output_folder(output_dir: str, data: DataArguments) -> Iterator[None]:
    """Within, the folder is there; where what is done fails with nothing in it, it goes again.

    Raises:
        ValueError: it is a file or cannot be made, holds a model, lies in the data or the data in it.
    """
    _check(output_dir, data)
    made = [path for path in (Path(output_dir), *Path(output_dir).parents) if not os.path.exists(path)]
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`output_dir` {output_dir!r} cannot be made ({one_line(error)}): choose another.") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it has something in it
            for path in made:
                path.rmdir()
        raise


def _check(output_dir: str, data: DataArguments) -> None:
    if os.path.lexists(output_dir) and not os.path.isdir(output_dir):
        raise ValueError(f"`output_dir` {output_dir!r} is no folder: choose another.")
    if os.path.exists(os.path.join(output_dir, "config.json")):  # which would get an adapter of its own
        raise ValueError(f"`output_dir` {output_dir!r} holds a model (config.json): choose another.")
    if data.data_root is None:
        return
    output, root = Path(os.path.realpath(output_dir)), Path(os.path.realpath(data.data_root))
    benchmarks = "," in data.task_set or data.task_set in BENCHMARK_TASK_SETS  # whose folders have names of their own
    if output.is_relative_to(root) and (output == root or not benchmarks):
        raise ValueError(
            f"`output_dir` {output_dir!r} lies in `data_root` {data.data_root!r}, where it would be taken for a task: "
            "choose another."
        )
    if root.is_relative_to(output):
        raise ValueError(
            f"`data_root` {data.data_root!r} lies in `output_dir` {output_dir!r}, which is overwritten and published: "
            "choose another."
        )
