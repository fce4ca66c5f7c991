"""`folder`, the task set made of a user's own images: a folder per task, a folder per class."""

from __future__ import annotations

import logging
from pathlib import Path

from jscpt_peft.data.found import POOL, FilesOnDisk, FoundTask, build_task, keys_of
from jscpt_peft.data.layout import LAYOUT, find_images
from jscpt_peft.data.manifest import images_of_manifest, new_manifest
from jscpt_peft.data.splits import check_amount, sample_task, split_pools
from jscpt_peft.data.task import TaskSet

logger = logging.getLogger(__name__)


def folder_task_set(
    data_root: str | Path,
    train_fraction: float | None = None,
    shots: int | None = None,
    seed: int = 1,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.3,
    split_seed: int = 0,
    manifest: dict | None = None,
    skip_bad_images: bool = False,
) -> TaskSet:
    """The tasks in `ROOT/<task>/<class>/*` or `ROOT/<task>/{train,validation,test}/<class>/*`.

    Tasks and classes come in the order of their folders' names; a class is named after its folder, with spaces for
    underscores. Images lie at any depth in the class's folder. Rows have `image`, `label`, `task_id` and `key` (the
    path relative to `data_root`).

    A task without split folders is split at random per class, always in the same way, whatever the `seed`: so runs
    with several seeds are tested on the same images. Then the scheduler's D_dev is taken out of validation (half of
    it) or, where there is none, out of the training images (a fifth). Last, `train_fraction` or `shots` of the
    remaining training images of each class are kept. All of it is a pure function of (seed, task name, key).

    Args:
        data_root: the folder with a folder per task.
        train_fraction: the part of each class's training images to keep, in (0, 1]; at least one image per class.
        shots: the number to keep of each class (all of them where there are fewer); at most one of the two.
        seed: of D_dev and of what is kept.
        validation_fraction, test_fraction: parts of each class for tasks without split folders (50/20/30 is CoOp's).
        split_seed: of that split.
        manifest: re-use exactly the images of this manifest (see `read_manifest`) instead of sampling.
        skip_bad_images: leave out unreadable images (each is decoded once now, and named in the log); otherwise
            reading such an image raises an error.

    Raises:
        FileNotFoundError, NotADirectoryError: `data_root` is no folder.
        ValueError: the layout is another one, a class has no training images, a task has no test images or none to
            spare for D_dev, an option is out of range, or the manifest does not fit the data.
    """
    check_amount(train_fraction, shots, manifest)
    found = find_images(data_root, skip_bad_images)
    if manifest is not None:
        chosen = images_of_manifest(manifest, "folder", found, "`data_root`")
    else:
        chosen = {}
        for task, splits in found.items():
            splits = _complete(task, splits, validation_fraction, test_fraction, split_seed)
            chosen[task] = sample_task(splits, train_fraction, shots, seed, task)
        options = {
            "train_fraction": train_fraction,
            "shots": shots,
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
            "split_seed": split_seed,
            "skip_bad_images": skip_bad_images,
        }
        manifest = new_manifest("folder", seed, options, chosen)
    images = FilesOnDisk(Path(data_root))
    tasks = [build_task(task_id, task, splits, images) for task_id, (task, splits) in enumerate(chosen.items())]
    return TaskSet(name="folder", tasks=tuple(tasks), manifest=manifest)


def _complete(
    task: str, splits: FoundTask, validation_fraction: float, test_fraction: float, split_seed: int
) -> FoundTask:
    """Train, validation and test of a task as it was found."""
    if POOL in splits:
        splits = split_pools(splits[POOL], validation_fraction, test_fraction, split_seed, task)
    folders = sorted({folder for classes in splits.values() for folder in classes})
    complete = {
        split: {folder: splits.get(split, {}).get(folder, []) for folder in folders}
        for split in ("train", "validation", "test")
    }
    for folder, keys in complete["train"].items():
        if not keys:
            raise ValueError(
                f"`data_root`: class {folder!r} of task {task!r} has no training images; add some or remove its "
                f"folder; {LAYOUT}."
            )
    untested = [folder for folder, keys in complete["test"].items() if not keys]
    if untested and keys_of(complete["test"]):
        logger.warning("No test images of the classes %s of task %r: accuracies say nothing of them.", untested, task)
    if not keys_of(complete["test"]):
        raise ValueError(
            f"`data_root`: task {task!r} has no test images; add some (a task without split folders needs two or more "
            "images in a class, and a `test_fraction` above 0)."
        )
    return complete
