"""A folder and all that is in it, read once; what is passed over is counted."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from jscpt_peft.data.files import FORMATS
from jscpt_peft.reading import one_line

logger = logging.getLogger(__name__)

SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
DEEPEST = 50
"""Levels of folders below the root that are looked into."""


@dataclass(frozen=True)
class Folder:
    """A folder.

    Attributes:
        path: of it.
        folders: those in it.
        images: keys of the images directly in it: their paths relative to the root.
    """

    path: Path
    folders: list[Folder]
    images: list[str]

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def deeper(self) -> list[str]:
        """Keys of the images in its folders, at any depth."""
        return [key for each in self.folders for key in (*each.images, *each.deeper)]

    def all_folders(self) -> Iterator[Folder]:
        """Those in it, at any depth."""
        for each in self.folders:
            yield each
            yield from each.all_folders()


class Scan:
    """Reads folders below `root`.

    Attributes:
        noted: what is worth saying of what was found or passed over, and how often.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real = root.resolve()
        self.noted: Counter[str] = Counter()

    def report(self) -> None:
        """Says in the log what was passed over."""
        if self.noted:
            counts = ", ".join(f"{count} x {what}" for what, count in self.noted.most_common())
            logger.warning("Passed over below %s: %s.", self.root, counts)

    def folder(self, path: Path, depth: int = 0) -> Folder:
        """A folder, with what is in it.

        Raises:
            ValueError: it cannot be read, a name is no text, a link leads out, or folders are nested without end.
        """
        if depth > DEEPEST:
            raise ValueError(f"`data_root`: {str(path)!r} lies more than {DEEPEST} folders deep: move it up.")
        folders, images = self.entries(path)
        return Folder(path, [self.folder(each, depth + 1) for each in folders], images)

    def entries(self, path: Path) -> tuple[list[Path], list[str]]:
        """The folders and the images (their keys) directly in a folder; all else is counted."""
        folders, images = [], []
        below = path.relative_to(self.root).as_posix()
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"`data_root`: {str(path)!r} cannot be read ({one_line(error)}): make it so.") from error
        for entry in found:
            if entry.name.startswith(".") or entry.name == "__MACOSX":  # of archives made on macOS
                self.noted["hidden"] += 1
                continue
            if entry.name != os.fsencode(entry.name).decode(errors="replace"):
                raise ValueError(f"`data_root`: the name of {entry.path!r} is no UTF-8 text: rename it.")
            if entry.is_symlink() and (entry.is_dir() or not self._stays(entry.path)):
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
                self.noted[(suffix or "(no suffix)") if entry.is_file() else "no regular file"] += 1
        if not found:
            self.noted["empty folder"] += 1
        return folders, images

    def _stays(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.real)  # `resolve` would raise on links in a circle
