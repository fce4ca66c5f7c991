"""`shapes`, the embedded procedural task set: the same 16 things in four drawing styles, a style per task.

Every image is a pure function of (seed, task, split, index): nothing is stored or downloaded, and shots=4 is a
subset of shots=16. A class has a favourite background (see `aligned_background`); `spurious_strength` says how often
it really stands there. Train on a correlation, test without it: the accuracies of group 1 (the background is the
class's favourite) and group 0 (it is not) show how much the model leans on the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from datasets import ClassLabel, Dataset, Features, Value

from jscpt_peft.data.drawing import BACKGROUNDS, STYLES, draw_scene, sample_scene
from jscpt_peft.data.outlines import OUTLINES
from jscpt_peft.data.splits import check_amount
from jscpt_peft.data.task import SPLITS, Task, TaskSet, read_column

# What the tasks call a thing where that is not the name of its outline. The small CLIP of the package learned from
# captions with the outlines' names: as with a real CLIP, some class names are not the words of its captions.
CLASS_WORDS = {"cross": "plus sign", "ring": "doughnut", "moon": "crescent", "arrow": "pointer", "tree": "pine"}
CLASS_NAMES = tuple(CLASS_WORDS.get(outline, outline) for outline in OUTLINES)
TRAIN_POOL = 160
"""Training images per class that `train_fraction` is a fraction of."""

SpuriousStrength = float | Mapping[str, float | Mapping[str, float]]

_FEATURES = Features(
    {
        # What the image is drawn from; `_render` turns it into the image on access.
        "image": {name: Value("string") for name in ("seed", "shape", "style", "background")},
        "label": ClassLabel(names=list(CLASS_NAMES)),
        "task_id": Value("int64"),
        "group": Value("int64"),
        "key": Value("string"),
    }
)


def shapes_task_set(
    seed: int = 1,
    shots: int | None = None,
    train_fraction: float | None = None,
    spurious_strength: SpuriousStrength = 0.5,
    tasks: Sequence[str] = tuple(STYLES),
    validation_per_class: int = 4,
    dev_per_class: int = 4,
    test_per_class: int = 25,
) -> TaskSet:
    """Build `shapes`.

    Args:
        seed: another seed gives other images in every split.
        shots: training images per class and task; 16 if neither this nor `train_fraction` is given.
        train_fraction: the same as a fraction in (0, 1] of a pool of `TRAIN_POOL` images per class.
        spurious_strength: correlation s in [0, 1] of background and class: the background is the class's favourite
            with probability s + (1 - s) / K, and each of the other K - 1 with probability (1 - s) / K. A float holds
            for the training split of every task; a dict gives one per task, either a float (training split) or a dict
            of one per split. What is left out is 0: validation, dev and test are unbiased unless asked otherwise,
            so that D_dev can tell the scheduler what training hides.
        tasks: the drawing styles to use, in task order.
        validation_per_class, dev_per_class, test_per_class: images per class and task.

    Returns:
        A `TaskSet` whose rows have `image` (RGB PIL image, 64 by 64, drawn on access), `label`, `task_id`, `group` (1
        if the background is the class's favourite, else 0: finer groups of 25 test images a class would be too small
        to compare) and `key`. `read_column` reads a column without drawing; `dataset["label"]` draws the images too.

    Raises:
        ValueError: an argument out of its range, both `shots` and `train_fraction`, or an unknown task or split.
    """
    if not tasks or len(set(tasks)) != len(tasks) or not set(tasks) <= set(STYLES):
        raise ValueError(f"`tasks` is {list(tasks)}: name each at most once, out of {list(STYLES)}.")
    sizes = {
        "train": _train_per_class(shots, train_fraction),
        "validation": validation_per_class,
        "dev": dev_per_class,
        "test": test_per_class,
    }
    for split, size in sizes.items():
        if size < 1:
            name = "shots" if split == "train" else f"{split}_per_class"
            raise ValueError(f"`{name}` is {size}: every split needs at least one image per class.")
    strengths = _strengths(spurious_strength, tasks)
    built = [
        Task(
            name=task,
            class_names=CLASS_NAMES,
            **{split: _split(seed, task, task_id, split, sizes[split], strengths[task][split]) for split in SPLITS},
        )
        for task_id, task in enumerate(tasks)
    ]
    manifest = {
        "task_set": "shapes",
        "seed": seed,
        "options": {"images_per_class": sizes, "spurious_strength": strengths, "class_names": list(CLASS_NAMES)},
        "tasks": {task.name: {split: read_column(task.split(split), "key") for split in SPLITS} for task in built},
    }
    return TaskSet(name="shapes", tasks=tuple(built), manifest=manifest)


def aligned_background(label: int) -> str:
    """The favourite background of class `label`; several classes share one."""
    return BACKGROUNDS[label % len(BACKGROUNDS)]


def _train_per_class(shots: int | None, train_fraction: float | None) -> int:
    check_amount(train_fraction, shots)
    if train_fraction is None:
        return 16 if shots is None else shots
    return max(1, round(train_fraction * TRAIN_POOL))


def _strengths(spurious_strength: SpuriousStrength, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """`spurious_strength` written out as task -> split -> float."""
    if not isinstance(spurious_strength, Mapping):
        spurious_strength = dict.fromkeys(tasks, spurious_strength)
    if unknown := set(spurious_strength) - set(tasks):
        raise ValueError(f"`spurious_strength` names {sorted(unknown)}: the tasks are {list(tasks)}.")
    strengths = {}
    for task in tasks:
        given = spurious_strength.get(task, 0.0)
        by_split = {split: 0.0 for split in SPLITS} | (given if isinstance(given, Mapping) else {"train": given})
        if unknown := set(by_split) - set(SPLITS):
            raise ValueError(f"`spurious_strength` of `{task}` names {sorted(unknown)}: the splits are {SPLITS}.")
        for split, strength in by_split.items():
            if not 0 <= strength <= 1:
                raise ValueError(f"`spurious_strength` of `{task}`, {split}, is {strength}: it must lie in [0, 1].")
        strengths[task] = {split: float(strength) for split, strength in by_split.items()}
    return strengths


def _split(seed: int, task: str, task_id: int, split: str, per_class: int, strength: float) -> Dataset:
    """The data set of one split; row `index` has label `index` modulo the number of classes."""
    rows = []
    for index in range(per_class * len(CLASS_NAMES)):
        label = index % len(CLASS_NAMES)
        key = f"{seed}/{task}/{split}/{index}"
        background = _draw_background(label, strength, Random(f"{key}/background"))
        scene = {"seed": key, "shape": tuple(OUTLINES)[label], "style": task, "background": background}
        group = int(background == aligned_background(label))
        rows.append({"image": scene, "label": label, "task_id": task_id, "group": group, "key": key})
    dataset = Dataset.from_list(rows, features=_FEATURES)
    return dataset.with_transform(_render, columns=["image"], output_all_columns=True)


def _draw_background(label: int, strength: float, rng: Random) -> str:
    # With probability s the favourite, else any of the K: the favourite has s + (1 - s) / K in all.
    return aligned_background(label) if rng.random() < strength else rng.choice(BACKGROUNDS)


def _render(batch: dict[str, list]) -> dict[str, list]:
    """The transform of the data sets; `batch` is empty where `image` was not selected."""
    return {name: [draw_scene(sample_scene(**scene)) for scene in scenes] for name, scenes in batch.items()}
