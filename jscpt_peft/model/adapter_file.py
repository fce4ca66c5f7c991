"""What an adapter's files may hold: the tensors that its configuration tells of, all of them, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

DIGEST_FILE = "adapter_model.sha256"
"""Beside the weights, in the form of `sha256sum`."""

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises a `ValueError` that names the tensors of a file which are not the adapter's.

    Args:
        found: tensors of the file, by name.
        expected: tensors of the adapter, by the names that they have in files.
    """
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
    return None if bool(found.to(expected.dtype).isfinite().all()) else "is not finite"


def write_digest(folder: Path, safe_serialization: bool) -> None:
    """Writes the digest of the weights in a folder beside them."""
    weights = folder / (SAFETENSORS_WEIGHTS_NAME if safe_serialization else WEIGHTS_NAME)
    (folder / DIGEST_FILE).write_text(f"{_digest(weights)}  {weights.name}\n", encoding="utf-8")


def check_digest(source: str | Path, **of_hub: Any) -> None:
    """Raises a `ValueError` where an adapter has a digest, and its weights another one.

    Args:
        source: folder or Hub id.
        of_hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        SafetensorError: the weights are no safetensors file, or not whole.
    """
    kinds = "gated_repo", "missing_entries", "connection_errors"
    options = {f"_raise_exceptions_for_{kind}": False for kind in kinds}  # `load_adapter` tells of those
    options |= {name: value for name, value in of_hub.items() if value is not None}
    digest_file = cached_file(source, DIGEST_FILE, **options)
    if digest_file is None:
        return
    said, _, name = Path(digest_file).read_text(encoding="utf-8", errors="replace").strip().partition("  ")
    weights = cached_file(source, WEIGHTS_NAME if name == WEIGHTS_NAME else SAFETENSORS_WEIGHTS_NAME, **options)
    if weights is None:
        return
    if name != WEIGHTS_NAME:
        with safe_open(weights, "pt"):
            pass
    if said != _digest(Path(weights)):
        raise ValueError(
            f"{Path(weights).name} of the adapter {str(source)!r} is not what was saved: its digest is not that of "
            f"{DIGEST_FILE}. Get both again; or remove that file, if the weights were changed on purpose."
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
