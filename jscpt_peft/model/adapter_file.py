"""What an adapter's files may hold: the tensors that its configuration tells of, all of them, and nothing else."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

DIGEST_FILE = "adapter_model.sha256"
"""Beside the weights, in the form of `sha256sum`: of the weights and, since 0.2, of the configuration."""

LARGEST = 1e6
"""No value of an adapter that works is larger: prompts, masks and maps are of the order of 1."""

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises a `ValueError` that names the tensors found in a file which are not those expected, the adapter's."""
    names = sorted(found.keys() | expected.keys())
    wrong = [(name, problem) for name in names if (problem := _problem(found.get(name), expected.get(name)))]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        listed = ", ".join(f"{name!r} {problem}" for name, problem in wrong[:3])
        raise ValueError(
            f"the adapter's weights are not those that its configuration tells of: {listed}{more}. Nothing is loaded; "
            "get the adapter again, or have it published again."
        )


def _problem(found: Tensor | None, expected: Tensor | None) -> str | None:
    if found is None:
        return "is missing"
    if expected is None:
        return "is no tensor of the adapter"
    if found.dtype not in NUMBERS:
        return f"holds {found.dtype}"
    if found.shape != expected.shape:
        return f"has the shape {list(found.shape)} instead of {list(expected.shape)}"
    return unsound(found.to(expected.dtype))


def unsound(tensor: Tensor) -> str | None:
    """What is wrong with the values of an adapter's tensor, or a base model's, if anything."""
    if tensor.numel() == 0:
        return None
    largest = tensor.detach().abs().max().item()  # NaN where any is
    if not math.isfinite(largest):
        return "is not finite"
    return None if largest <= LARGEST else f"holds {largest:.3g}, where nothing beyond {LARGEST:.0e} can be meant"


def check_sound(tensors: Mapping[str, Tensor]) -> None:
    """Raises a `ValueError` that names the tensor of an adapter which could not be loaded again."""
    for name, tensor in tensors.items():
        if problem := unsound(tensor):
            raise ValueError(
                f"{name!r} of the adapter {problem}: nothing is written. Save one of before that, or start anew."
            )


def write_digest(folder: Path, safe_serialization: bool) -> None:
    """Writes the digests of the weights and the configuration in a folder beside them."""
    names = SAFETENSORS_WEIGHTS_NAME if safe_serialization else WEIGHTS_NAME, CONFIG_NAME
    lines = [f"{_digest(folder / name)}  {name}\n" for name in names]
    (folder / DIGEST_FILE).write_text("".join(lines), encoding="utf-8")


def check_digest(source: str | Path, **of_hub: Any) -> None:
    """Raises a `ValueError` where an adapter has digests, and its weights or its configuration another one.

    Digests of an earlier version are those of the weights alone.

    Args:
        source: folder or Hub id.
        of_hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        SafetensorError: the weights are no safetensors file, or not whole.
    """
    if os.path.isdir(source):
        _check_folder(Path(source, of_hub.get("subfolder") or ""))
    kinds = "gated_repo", "missing_entries", "connection_errors"
    options = {f"_raise_exceptions_for_{kind}": False for kind in kinds}  # `load_adapter` tells of those
    options |= {name: value for name, value in of_hub.items() if value is not None}
    digest_file = cached_file(source, DIGEST_FILE, **options)
    if digest_file is None:
        return
    # PEFT's choice; whatever the digests are of, this is what will be loaded
    weights = cached_file(source, SAFETENSORS_WEIGHTS_NAME, **options) or cached_file(source, WEIGHTS_NAME, **options)
    if weights is None:
        return
    name = Path(weights).name
    if name == SAFETENSORS_WEIGHTS_NAME:
        with safe_open(weights, "pt"):
            pass
    text = Path(digest_file).read_bytes()[:1000].decode(errors="replace")
    said = {of: digest for digest, _, of in (line.partition("  ") for line in text.splitlines())}
    found = {name: weights, CONFIG_NAME: cached_file(source, CONFIG_NAME, **options)}
    for each in [name] if CONFIG_NAME not in said else found:
        if each not in said or found[each] is None or said[each] != _digest(Path(found[each])):
            raise ValueError(
                f"{each} of the adapter {str(source)!r} is not what was saved: its digest is not that of "
                f"{DIGEST_FILE}. Get all of it again; or remove that file, if it was changed on purpose."
            )


def _check_folder(folder: Path) -> None:
    """Raises a `ValueError` where what belongs to an adapter is not there, or no file."""
    names = [SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, CONFIG_NAME, DIGEST_FILE]
    if wrong := [name for name in names if os.path.lexists(folder / name) and not os.path.isfile(folder / name)]:
        raise ValueError(f"{wrong[0]} of the adapter {str(folder)!r} is no file: get the adapter again.")
    if not any(os.path.isfile(folder / name) for name in names[:2]):
        raise ValueError(f"the adapter {str(folder)!r} has no {SAFETENSORS_WEIGHTS_NAME}: get the adapter again.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
