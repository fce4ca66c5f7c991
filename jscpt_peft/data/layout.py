"""Finding the images below a data root: `ROOT/<task>/<class>/*`, with or without folders for the splits between."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from PIL import Image

from jscpt_peft.data.found import POOL, FilesOnDisk, FoundTask, without_unreadable

logger = logging.getLogger(__name__)

LAYOUT = "expected ROOT/<task>/<class>/<image> or ROOT/<task>/{train,validation,test}/<class>/<image>"
SPLIT_FOLDERS = {split: split for split in ("train", "validation", "test")} | dict.fromkeys(
    ("val", "valid"), "validation"
)


def find_images(data_root: str | Path, skip_bad_images: bool = False) -> dict[str, FoundTask]:
    """All images below `data_root`, as {task: {split: {class folder: [keys]}}}; a key is a path relative to the root.

    The split is `train`, `validation` or `test`, or `POOL` for a task without folders for them. Hidden files are
    ignored; other files that Pillow has no reader for are ignored and counted in the log, by suffix.

    Args:
        data_root: the folder with one folder a task.
        skip_bad_images: decode every image once and leave out the unreadable ones (named in the log).

    Raises:
        FileNotFoundError, NotADirectoryError: `data_root` is no folder.
        ValueError: it does not follow the layout.
    """
    root = Path(data_root)
    if not root.exists():
        raise FileNotFoundError(f"`data_root` {str(data_root)!r} does not exist: {LAYOUT}.")
    if not root.is_dir():
        raise NotADirectoryError(f"`data_root` {str(data_root)!r} is a file, not a folder: {LAYOUT}.")
    tasks = _folders(root)
    if not tasks:
        raise ValueError(f"`data_root` {str(data_root)!r} has no folder in it: {LAYOUT}.")
    if all(task.name.lower() in SPLIT_FOLDERS for task in tasks):
        names = ", ".join(task.name for task in tasks)
        raise ValueError(
            f"`data_root` {str(data_root)!r} has folders for splits ({names}) where its tasks should be: {LAYOUT}. "
            "Put them into a folder with the task's name."
        )
    search = ImageSearch(root)
    found = {task.name: search.task(task) for task in tasks}
    if search.skipped:
        counts = ", ".join(f"{count} x {suffix}" for suffix, count in search.skipped.most_common())
        logger.warning("Ignored files below %s that Pillow cannot open: %s.", root, counts)
    return without_unreadable(found, FilesOnDisk(root), root) if skip_bad_images else found


class ImageSearch:
    """Walks class folders and counts what it skips."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: Counter[str] = Counter()
        self.suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}

    def task(self, task: Path) -> FoundTask:
        folders = _folders(task)
        if not folders:
            raise ValueError(
                f"`data_root`: {str(task)!r} has no class folders in it: {LAYOUT}. Is `data_root` one level too deep?"
            )
        # a class may be called "train": a split folder is one with folders in it
        splits = [folder for folder in folders if folder.name in SPLIT_FOLDERS and _folders(folder)]
        if not splits:
            return {POOL: self._classes(folders)}
        others = [folder.name for folder in folders if folder.name not in SPLIT_FOLDERS]
        if others:
            raise ValueError(
                f"`data_root`: {str(task)!r} holds both the split folder {splits[0].name!r} and the folder "
                f"{others[0]!r}, which is no split: {LAYOUT}. Move or rename one of them."
            )
        found: FoundTask = {}
        for folder in splits:
            split = SPLIT_FOLDERS[folder.name]
            if split in found:
                raise ValueError(f"`data_root`: {str(task)!r} has two folders for {split!r}: merge them.")
            found[split] = self._classes(_folders(folder))
        for split in ("train", "test"):
            if split not in found:
                raise ValueError(
                    f"`data_root`: {str(task)!r} has folders for splits but none for {split!r}: add it, or put the "
                    "class folders directly into the task's folder to have them split at random."
                )
        return found

    def _classes(self, folders: list[Path]) -> dict[str, list[str]]:
        return {folder.name: self.images(folder) for folder in folders}

    def images(self, folder: Path) -> list[str]:
        keys = []
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.startswith("."):
                    continue
                path = Path(parent, name)
                if path.suffix.lower() in self.suffixes:
                    keys.append(path.relative_to(self.root).as_posix())
                else:
                    self.skipped[path.suffix or "(no suffix)"] += 1
        return sorted(keys)


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
