"""The tables that `reproduce.py` makes: which settings, which methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

from outside_methods import OUTSIDE
from published import PUBLISHED

from jscpt_peft.methods import METHODS

ABLATIONS = tuple(name for name in METHODS if name.startswith("jscpt_"))
# Each alone on each task, and all tasks together; the ablations of JSCPT have a table of their own.
ALL = tuple(
    name + form
    for name, method in METHODS.items()
    if name not in ABLATIONS
    for form in (("", " --single_task") if method.single_task else ("",))
)
JOINT = "jscpt --no_prompt_scheduling --no_task_scheduling"
RESIDUALS = f"{JOINT} --num_shared_tokens 0 --num_task_tokens 0"
ICONS = ("outline", "solid", "duotone", "colour")


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        settings: name of each part of the table -> arguments of recipes/train.py.
        methods: the rows: a name of `METHODS` with further arguments.
        published: setting -> method -> mean accuracy in % as the paper prints it.
    """

    settings: Mapping[str, str]
    methods: tuple[str, ...] = (*ALL, JOINT, *OUTSIDE)
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


TABLES = {
    "icons": Table(
        {
            "clean": "--task_set icons",
            "wrong labels": "--task_set icons --label_noise duotone=0.7,colour=0.7",
            "few in one": "--task_set icons --shots colour=1",
        }
    ),
    "icon_pairs": Table(  # which task helps which
        {" and ".join(pair): f"--task_set icons --only_tasks {','.join(pair)}" for pair in combinations(ICONS, 2)},
        (f"{RESIDUALS} --class_residual both --task_prior 10", f"{RESIDUALS} --class_residual task"),
    ),
    "shapes": Table(
        {
            "clean": "--task_set shapes",
            "biased": "--task_set shapes --spurious_strength flat=0,outline=0.95,chalk=0.95,mosaic=0.95",
            "wrong labels": "--task_set shapes --label_noise chalk=0.7,mosaic=0.7",
            "few in one": "--task_set shapes --shots mosaic=1",
        }
    ),
    "emoji": Table({"clean": "--task_set emoji"}),
    "base_to_new": Table(
        {name: f"--task_set {name} --split base_to_new" for name in ("icons", "shapes")},
        tuple(name for name in ALL if "--single_task" not in name),
    ),
    "office_home": Table(
        {f"{part:.0%}": f"--task_set office_home --train_fraction {part}" for part in (0.1, 0.2)},
        published=PUBLISHED["office_home"],
    ),
    "mini_domainnet": Table(
        {f"{part:.0%}": f"--task_set mini_domainnet --train_fraction {part}" for part in (0.01, 0.02)},
        published=PUBLISHED["mini_domainnet"],
    ),
    "few_shot": Table(
        {f"{shots} shots": f"--task_set few_shot_10 --shots {shots}" for shots in (1, 5, 10, 20)},
        published=PUBLISHED["few_shot"],
    ),
    "ablation": Table(
        {f"{part:.0%}": f"--task_set office_home --train_fraction {part}" for part in (0.1, 0.2)},
        ("jscpt", JOINT, *ABLATIONS),
        PUBLISHED["ablation"],
    ),
}
