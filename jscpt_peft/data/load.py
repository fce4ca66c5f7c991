"""Task sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jscpt_peft.choices import nearest
from jscpt_peft.data.folder import folder_task_set
from jscpt_peft.data.shapes import shapes_task_set
from jscpt_peft.data.task import TaskSet

TASK_SETS = ("shapes", "folder")


def load_task_set(
    name: str,
    data_root: str | Path | None = None,
    train_fraction: float | None = None,
    shots: int | None = None,
    seed: int = 1,
    **options: Any,
) -> TaskSet:
    """The task set called `name`.

    Args:
        name: `shapes` (drawn on the fly, needs no data) or `folder` (your own images below `data_root`).
        data_root: the folder that holds the data.
        train_fraction: the part of each class's training images to use, in (0, 1].
        shots: the number of training images a class; at most one of the two.
        seed: of all sampling.
        options: passed on to `shapes_task_set` or `folder_task_set`.

    Raises:
        ValueError: an unknown name, or a missing or superfluous `data_root`; and what these functions raise.

    Example:
        >>> tasks = load_task_set("shapes", shots=4)
        >>> list(tasks.class_names)
        ['flat', 'outline', 'chalk', 'mosaic']
    """
    sampling = {"train_fraction": train_fraction, "shots": shots, "seed": seed}
    if name == "shapes":
        if data_root is not None:
            raise ValueError(f"`data_root` is {str(data_root)!r}, but 'shapes' reads no data: leave it out.")
        return shapes_task_set(**sampling, **options)
    if name == "folder":
        if data_root is None:
            raise ValueError("`data_root` is None: 'folder' needs the folder with your images (ROOT/<task>/<class>/).")
        return folder_task_set(data_root, **sampling, **options)
    raise ValueError(f"`name` is {name!r}: known task sets are {', '.join(TASK_SETS)}.{nearest(name, TASK_SETS)}")
