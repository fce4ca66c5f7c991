"""Finding the images below a data root: `ROOT/<task>/<class>/*`, with or without folders for the splits between."""

from __future__ import annotations

import os.path
from collections import Counter
from pathlib import Path

from jscpt_peft.data.found import POOL, FilesOnDisk, FoundTask, without_unreadable
from jscpt_peft.data.split_names import splits_among
from jscpt_peft.data.tree import Folder, Scan

LAYOUT = "expected ROOT/<task>/<class>/<image> or ROOT/<task>/{train,validation,test}/<class>/<image>"


def find_images(data_root: str | Path, skip_bad_images: bool = False) -> dict[str, FoundTask]:
    """All images below `data_root`, as {task: {split: {class folder: [keys]}}}; a key is a path relative to the root.

    The split is `train`, `validation` or `test`, or `POOL` for a task without folders for them. Whatever is passed
    over (hidden files, files of other kinds, empty folders, images that are in no class folder) is counted in the log;
    with `skip_bad_images`, every image is decoded once, and the unreadable ones are left out and named there.

    What might be another layout is questioned: names of splits where tasks or classes should be, and folders most of
    whose images lie a level too high or too deep.

    Raises:
        FileNotFoundError, NotADirectoryError: `data_root` is no folder.
        ValueError: it does not follow the layout, cannot be read, or a link leads out of it.
    """
    root = Path(data_root)
    if not os.path.exists(root):  # `Path.exists` would raise where the name is too long
        raise FileNotFoundError(f"`data_root` {str(data_root)!r} does not exist: {LAYOUT}.")
    if not os.path.isdir(root):
        raise NotADirectoryError(f"`data_root` {str(data_root)!r} is a file, not a folder: {LAYOUT}.")
    scan = Scan(root)
    top = scan.folder(root)
    if not top.folders:
        raise ValueError(f"`data_root` {str(data_root)!r} has no folder in it: {LAYOUT}.")
    if splits := splits_among(task.name for task in top.folders):
        raise ValueError(
            f"`data_root` {str(data_root)!r} has folders for splits ({', '.join(splits)}) where its tasks should be: "
            f"{LAYOUT}. Put them into a folder with the task's name; of several tasks, each has splits of its own."
        )
    found = {task.name: _task(task, scan) for task in subfolders(top, scan)}
    scan.report()
    return without_unreadable(found, FilesOnDisk(root), root) if skip_bad_images else found


def subfolders(folder: Folder, scan: Scan) -> list[Folder]:
    """The folders in one that is no class's."""
    if folder.images and len(folder.images) >= len(folder.deeper):
        raise ValueError(
            f"`data_root`: {str(folder.path)!r} holds {len(folder.images)} images in no class folder, and "
            f"{len(folder.deeper)} in folders: {LAYOUT}. Is `data_root` one level too deep?"
        )
    if folder.images:
        scan.noted["image in no class folder"] += len(folder.images)
    return folder.folders


def _task(task: Folder, scan: Scan) -> FoundTask:
    """The classes of one task by split."""
    if not task.folders:
        raise ValueError(
            f"`data_root`: {str(task.path)!r} has no class folders in it: {LAYOUT}. Is `data_root` one level too deep?"
        )
    folders = subfolders(task, scan)
    named = splits_among(each.name for each in folders)
    splits = {each.name: named[each.name] for each in folders if each.folders and each.name in named}
    if not splits:  # a class may be called "train": a split folder is one with folders in it
        if len(set(named.values())) > 1 or len(named) == len(folders):
            raise ValueError(
                f"`data_root`: the folders {', '.join(named)} in {str(task.path)!r} are named after splits, but hold "
                f"images and no class folders: {LAYOUT}. Put the images into a folder for each class."
            )
        return {POOL: classes_of(folders, scan)}
    if others := [each.name for each in folders if each.name not in splits]:
        what = "which holds images and no class folders" if others[0] in named else "which is no split"
        raise ValueError(
            f"`data_root`: {str(task.path)!r} holds both the split folder {next(iter(splits))!r} and the folder "
            f"{others[0]!r}, {what}: {LAYOUT}. Move or rename one of them."
        )
    for split, count in Counter(splits.values()).items():
        if count > 1:
            raise ValueError(f"`data_root`: {str(task.path)!r} has two folders for {split!r}: merge them.")
    for split in ("train", "test"):
        if split not in splits.values():
            raise ValueError(
                f"`data_root`: {str(task.path)!r} has folders for splits but none for {split!r}: add it, or put the "
                "class folders directly into the task's folder to have them split at random."
            )
    return {splits[each.name]: classes_of(subfolders(each, scan), scan) for each in folders}


def classes_of(folders: list[Folder], scan: Scan) -> dict[str, list[str]]:
    """Class folder -> keys of its images, at any depth; most of them must lie in it directly.

    Raises:
        ValueError: another layout is more likely.
    """
    for folder in folders:
        splits = splits_among(each.name for each in folder.all_folders())
        if folder.deeper and (splits or len(folder.deeper) >= len(folder.images)):
            what = "only folders" if not folder.images else f"mostly folders, beside {len(folder.images)} images"
            what = f"a folder for a split ({next(iter(splits))!r})" if splits and folder.images else what
            raise ValueError(
                f"`data_root`: the class folder {str(folder.path)!r} holds {what} ({folder.folders[0].name!r}, ...): "
                f"{LAYOUT}. Is `data_root` one level too high? Otherwise move the images up."
            )
        if folder.deeper:
            scan.noted["image in a folder within a class's (taken)"] += len(folder.deeper)
    return {folder.name: sorted(folder.images + folder.deeper) for folder in folders}
