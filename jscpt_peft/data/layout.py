"""Finding the images below a data root: `ROOT/<task>/<class>/*`, with or without folders for the splits between."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from jscpt_peft.data.files import FORMATS
from jscpt_peft.data.found import POOL, FilesOnDisk, FoundTask, without_unreadable

logger = logging.getLogger(__name__)

LAYOUT = "expected ROOT/<task>/<class>/<image> or ROOT/<task>/{train,validation,test}/<class>/<image>"
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}

_SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "validating", "valid", "val", "dev", "development", "eval"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
_FILLERS = {"seg", "set", "split", "data", "images", "imgs"}  # as in `seg_train` and `test_set`


def split_of_folder(name: str) -> str | None:
    """The split that a folder is named after, as in `Train`, `validation`, `seg_train`, `test_set` or `val2017`."""
    words = [re.sub(r"(?<=.)set$|\d+$", "", word) for word in re.split(r"[\W_]+", name.lower())]
    words = [word for word in words if word and word not in _FILLERS]
    return _SPLIT_OF_WORD.get(words[0]) if len(words) == 1 else None


def find_images(data_root: str | Path, skip_bad_images: bool = False) -> dict[str, FoundTask]:
    """All images below `data_root`, as {task: {split: {class folder: [keys]}}}; a key is a path relative to the root.

    The split is `train`, `validation` or `test`, or `POOL` for a task without folders for them. Whatever is passed
    over (hidden files, files of other kinds, empty folders, images that are in no class folder) is counted in the log;
    with `skip_bad_images`, every image is decoded once, and the unreadable ones are left out and named there.

    Raises:
        FileNotFoundError, NotADirectoryError: `data_root` is no folder.
        ValueError: it does not follow the layout, or a link leads out of it.
    """
    root = Path(data_root)
    if not root.exists():
        raise FileNotFoundError(f"`data_root` {str(data_root)!r} does not exist: {LAYOUT}.")
    if not root.is_dir():
        raise NotADirectoryError(f"`data_root` {str(data_root)!r} is a file, not a folder: {LAYOUT}.")
    search = ImageSearch(root)
    tasks = search.folders(root)
    if not tasks:
        raise ValueError(f"`data_root` {str(data_root)!r} has no folder in it: {LAYOUT}.")
    if splits := [task.name for task in tasks if split_of_folder(task.name)]:
        raise ValueError(
            f"`data_root` {str(data_root)!r} has folders for splits ({', '.join(splits)}) where its tasks should be: "
            f"{LAYOUT}. Put them into a folder with the task's name; of several tasks, each has splits of its own."
        )
    found = {task.name: search.task(task) for task in tasks}
    search.report()
    return without_unreadable(found, FilesOnDisk(root), root) if skip_bad_images else found


class ImageSearch:
    """Walks folders of tasks and classes below `root`, and counts what it passes over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real = root.resolve()
        self.passed_over: Counter[str] = Counter()

    def report(self) -> None:
        """Says in the log what was passed over."""
        if self.passed_over:
            counts = ", ".join(f"{count} x {what}" for what, count in self.passed_over.most_common())
            logger.warning("Passed over below %s: %s.", self.root, counts)

    def task(self, task: Path) -> FoundTask:
        """The classes of one task by split."""
        folders = self.folders(task)
        if not folders:
            raise ValueError(
                f"`data_root`: {str(task)!r} has no class folders in it: {LAYOUT}. Is `data_root` one level too deep?"
            )
        # a class may be called "train": a split folder is one with folders in it
        split_of = {path: split_of_folder(path.name) for path in folders if _has_folders(path)}
        splits = {path: split for path, split in split_of.items() if split}
        if not splits:
            return {POOL: self._classes(folders)}
        if others := [path.name for path in folders if path not in splits]:
            raise ValueError(
                f"`data_root`: {str(task)!r} holds both the split folder {next(iter(splits)).name!r} and the folder "
                f"{others[0]!r}, which is no split: {LAYOUT}. Move or rename one of them."
            )
        for split, count in Counter(splits.values()).items():
            if count > 1:
                raise ValueError(f"`data_root`: {str(task)!r} has two folders for {split!r}: merge them.")
        for split in ("train", "test"):
            if split not in splits.values():
                raise ValueError(
                    f"`data_root`: {str(task)!r} has folders for splits but none for {split!r}: add it, or put the "
                    "class folders directly into the task's folder to have them split at random."
                )
        return {split: self._classes(self.folders(path)) for path, split in splits.items()}

    def _classes(self, folders: list[Path]) -> dict[str, list[str]]:
        return {folder.name: self.images(folder) for folder in folders}

    def folders(self, path: Path) -> list[Path]:
        """The folders in a folder that is no class's."""
        folders, images = self._entries(path)
        if images:
            self.passed_over["image in no class folder"] += len(images)
        return folders

    def images(self, folder: Path) -> list[str]:
        """Keys of the images in a class folder, at any depth; some must lie in it directly."""
        folders, images = self._entries(folder)
        deeper = [key for each in folders for key in self._all_images(each)]
        if deeper and not images:
            raise ValueError(
                f"`data_root`: the class folder {str(folder)!r} holds only folders ({folders[0].name!r}, ...): "
                f"{LAYOUT}. Is `data_root` one level too high? Otherwise move the images up."
            )
        return sorted(images + deeper)

    def _all_images(self, folder: Path) -> list[str]:
        folders, images = self._entries(folder)
        return images + [key for each in folders for key in self._all_images(each)]

    def _entries(self, path: Path) -> tuple[list[Path], list[str]]:
        """The folders and the images (their keys) in a folder; all else is counted."""
        folders, images = [], []
        below = path.relative_to(self.root).as_posix()
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith("."):
                self.passed_over["hidden"] += 1
                continue
            if entry.name != os.fsencode(entry.name).decode(errors="replace"):
                raise ValueError(f"`data_root`: the name of {entry.path!r} is no UTF-8 text: rename it.")
            if entry.is_symlink() and (entry.is_dir() or not Path(entry).resolve().is_relative_to(self.real)):
                raise ValueError(
                    f"`data_root`: {entry.path!r} is a link to a folder or to a file outside of {str(self.root)!r}: "
                    "copy what it leads to, or give the folder where that is."
                )
            suffix = os.path.splitext(entry.name)[1]
            if entry.is_dir():
                folders.append(Path(entry))
            elif entry.is_file() and suffix.lower() in SUFFIXES:
                images.append(f"{below}/{entry.name}")
            else:
                self.passed_over[(suffix or "(no suffix)") if entry.is_file() else "no regular file"] += 1
        if not found:
            self.passed_over["empty folder"] += 1
        return folders, images


def _has_folders(path: Path) -> bool:
    with os.scandir(path) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
