"""`emoji`, real images that any machine with npm can build: four vendors' drawings of the same 57 classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants

from jscpt_peft.data.folder import folder_task_set
from jscpt_peft.data.layout import find_images
from jscpt_peft.data.task import TaskSet

STYLES = ("fluent3d", "google", "openmoji", "twitter")
NUM_CLASSES = 57
COUNTS = {"train": 309, "validation": 125, "test": 249}  # images of each task: 1236, 500 and 996 in all


def default_root() -> Path:
    """Where `tools/prepare_emoji.py` puts the task set: below Hugging Face's cache folder."""
    return Path(constants.HF_HOME, "jscpt_peft", "emoji")


def emoji_task_set(
    data_root: str | Path | None = None,
    train_fraction: float | None = None,
    shots: int | None = None,
    seed: int = 1,
    manifest: dict | None = None,
    skip_bad_images: bool = False,
) -> TaskSet:
    """Emoji as drawn by Microsoft (Fluent 3D), Google, OpenMoji and Twitter: four tasks with the same 57 classes.

    The classes are Unicode's subgroups (`animal-bird`, `light & video`). Training, validation and test images show
    different emoji, the same ones in every task. D_dev is half of validation.

    Args:
        data_root: the folder that `tools/prepare_emoji.py` made; default: where it puts it.
        train_fraction, shots, seed, manifest, skip_bad_images: as for `folder_task_set`.

    Raises:
        FileNotFoundError: the task set has not been built yet.
        ValueError: it is not the one that the tool builds, or what `folder_task_set` raises.
    """
    root = default_root() if data_root is None else Path(data_root)
    check_emoji(root)
    if manifest is not None:
        if manifest["task_set"] != "emoji":
            raise ValueError(f"`manifest` belongs to the task set {manifest['task_set']!r}, not to 'emoji'.")
        manifest = {**manifest, "task_set": "folder"}
    task_set = folder_task_set(
        root / "tasks", train_fraction, shots, seed, manifest=manifest, skip_bad_images=skip_bad_images
    )
    given = ("validation_fraction", "test_fraction", "split_seed")  # the split is the data's own
    options = {name: value for name, value in task_set.manifest["options"].items() if name not in given}
    return replace(task_set, name="emoji", manifest={**task_set.manifest, "task_set": "emoji", "options": options})


def check_emoji(root: Path) -> None:
    """Raises a FileNotFoundError or a ValueError where `root` does not hold what the tool builds."""
    build = f"python tools/prepare_emoji.py{'' if root == default_root() else f' --output {root}'}"
    if not (root / "tasks").is_dir():
        raise FileNotFoundError(f"the emoji task set is not in {root}: build it with `{build}`, which needs npm.")
    found = find_images(root / "tasks")
    classes = {name for splits in found.values() for split in splits.values() for name in split}
    facts = [("tasks", list(found), list(STYLES)), ("classes", len(classes), NUM_CLASSES)]
    for task, splits in found.items():
        counts = {split: sum(map(len, images.values())) for split, images in splits.items() if set(images) == classes}
        facts.append((f"images of all classes in {task}", counts, COUNTS))
    for what, there, expected in facts:
        if there != expected:
            raise ValueError(
                f"{root} holds another task set than emoji: {what}: {there} instead of {expected}. Move it away and "
                f"run `{build}`."
            )
