"""Files that may come from strangers: which images are opened, how large they may be, and where paths may lead."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from jscpt_peft.reading import check_regular

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
"""Raster formats that Pillow decodes itself, whatever a file is called. EPS would start Ghostscript."""

MAX_PIXELS = 2**26
"""The largest image that is decoded, 8192 by 8192 pixels: with its conversions it takes up to 2 GB."""

# what Pillow raises on files that are truncated, corrupt, of an unknown kind or implausibly large
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def open_image(source: str | os.PathLike | bytes, jpeg_side: int | None = None) -> Image.Image:
    """The decoded image in a file, or in the bytes of one.

    Args:
        source: a path, or bytes.
        jpeg_side: decode a JPEG at a half, quarter or eighth of its size where its sides stay at least so long: in a
            fraction of the time, with pixels that differ a little from those of a full decoding resized.

    Raises:
        OSError: it is no regular file, or none of `FORMATS`.
        ValueError: it has no pixels, or more than `MAX_PIXELS`.
    """
    if not isinstance(source, bytes):
        check_regular(source)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # MPO is opened as JPEG; AVIF is not in every Pillow
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known)
    check_size(*image.size)
    if jpeg_side is not None:
        image.draft(None, (jpeg_side, jpeg_side))  # JPEG alone knows how
    image.load()  # and closes the file
    return image


@dataclass(frozen=True)
class OpensImages:
    """The transform of data sets whose column `image` says where each image is.

    Attributes:
        image: opens one, given what the column holds and `jpeg_side`.
        jpeg_side: as of `open_image`.
    """

    image: Callable[[dict, int | None], Image.Image]
    jpeg_side: int | None = None

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """The images of a batch, which is empty where `image` was not selected."""
        return {name: [self.image(place, self.jpeg_side) for place in places] for name, places in batch.items()}


def check_size(width: int, height: int) -> None:
    """Raises a ValueError where an image has no pixels or more than `MAX_PIXELS`."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"it is {width} by {height} pixels: 1 to {MAX_PIXELS} (`MAX_PIXELS`) are decoded")


def leading_out(root: Path, keys: Iterable[str], folder: str = "") -> list[str]:
    """Those of `keys`, paths relative to `root`, that lead out of its `folder`: `../x`, `/x`, or a symbolic link."""
    real = (root / folder).resolve()

    @cache
    def inside(path: str) -> bool:
        return Path(path).resolve().is_relative_to(real)

    def stays(key: str) -> bool:
        path = root / key
        return inside(str(path.parent)) and (not path.is_symlink() or inside(str(path)))

    return [key for key in keys if not stays(key)]
