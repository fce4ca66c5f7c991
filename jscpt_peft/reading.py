"""Text and JSON files that may come from strangers, or be cut off: read, or refused in one sentence."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 2**27
"""The largest text that is read: a manifest of more than a million images is smaller."""


def check_regular(path: str | os.PathLike) -> None:
    """Raises an OSError where `path` is a pipe or a device, which might never end, or anything else but a file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{os.fspath(path)!r} is no regular file")


def read_text(path: str | os.PathLike) -> str:
    """The text of a regular file.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no UTF-8, or larger than `MAX_BYTES`.
    """
    check_regular(path)
    size = os.stat(path).st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, more than the {MAX_BYTES} that are read")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text (byte {error.start})") from error


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds; errors say what is wrong with it, and the caller which file it is.

    Raises:
        OSError, ValueError: as `read_text`; or it is no JSON, nested too deeply, or has a key twice in one mapping.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=mapping_of)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON (line {error.lineno}: {error.msg})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """As `read_json`, of a file that holds a mapping."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} where a mapping belongs")
    return content


def mapping_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Keys with their values, each key once: of two values the first would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has the key {repeated!r} twice")
    return found


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
