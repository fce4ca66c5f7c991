"""Task sets by name."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from jscpt_peft.choices import nearest
from jscpt_peft.data.benchmark_tasks import BENCHMARK_TASK_SETS, benchmark_task_set
from jscpt_peft.data.emoji import emoji_task_set
from jscpt_peft.data.folder import folder_task_set
from jscpt_peft.data.icons import icons_task_set
from jscpt_peft.data.shapes import shapes_task_set
from jscpt_peft.data.task import TaskSet
from jscpt_peft.settings import check_setting, path_given

OWN = {"shapes": shapes_task_set, "folder": folder_task_set, "emoji": emoji_task_set, "icons": icons_task_set}
NEED_FOLDER = {"folder": "the folder with your images (ROOT/<task>/<class>/)", "icons": "recipes/assets/icons"}
TASK_SETS = (*OWN, *BENCHMARK_TASK_SETS)


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
        name: `shapes` (drawn on the fly, needs no data), `folder` (your own images below `data_root`), `emoji` (made
            by `tools/prepare_emoji.py`), `icons` (in recipes/assets/icons), `office_home`, `mini_domainnet`,
            `few_shot_10`, one of the ten data sets of the latter, or several benchmarks with commas between, as in
            `"food101,oxford_pets"`.
        data_root: the folder that holds the data; None where they are drawn, downloaded or in their usual place.
        train_fraction: the part of each class's training images to use, in (0, 1].
        shots: the number of training images per class; at most one of the two.
        seed: of all sampling.
        options: passed on to the task set's own function, such as `shapes_task_set`.

    Raises:
        ValueError: an unknown name, a missing or superfluous `data_root`, an option that the task set does not take;
            and what these functions raise.

    Example:
        >>> tasks = load_task_set("shapes", shots=4)
        >>> list(tasks.class_names)
        ['flat', 'outline', 'chalk', 'mosaic']
    """
    check_setting("name", name, str)
    if name in OWN:
        load = OWN[name]
    elif "," in name or name in BENCHMARK_TASK_SETS:
        load = partial(benchmark_task_set, name)
    else:
        raise ValueError(f"`name` is {name!r}: known task sets are {', '.join(TASK_SETS)}.{nearest(name, TASK_SETS)}")
    given = {"train_fraction": train_fraction, "shots": shots, "seed": seed, **options}
    if data_root is not None:
        given["data_root"] = str(path_given("data_root", data_root))
    elif name in NEED_FOLDER:
        raise ValueError(f"`data_root` is None: {name!r} needs {NEED_FOLDER[name]}.")
    if foreign := [option for option in given if option not in inspect.signature(load).parameters]:
        raise ValueError(
            f"`{foreign[0]}` is {given[foreign[0]]!r}, which the task set {name!r} does not take: leave it out."
        )
    hints = get_type_hints(load.func if isinstance(load, partial) else load)
    for option, value in given.items():
        check_setting(option, value, hints[option])
    return load(**given)
