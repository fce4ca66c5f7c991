"""Why a model's logits are not numbers, in words, with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .adapter_file import check_sound, unsound

if TYPE_CHECKING:
    from .injection import JSCPTInjection


def check_logits(model: JSCPTInjection, logits: Tensor, pixel_values: Tensor) -> None:
    """Raises a `FloatingPointError` that names the cause where logits `[B, C]` of images `[B, 3, H, W]` are NaN."""
    if bool(logits.isnan().any()):
        rows = logits.isnan().any(-1).nonzero()[:, 0].tolist()
        raise FloatingPointError(
            f"The logits of {len(rows)} of {len(logits)} images (the first is number {rows[0]}) are not finite: "
            f"{cause_of_nan(model, pixel_values)}."
        )


def check_finite(model: JSCPTInjection, made_of_it: Mapping[str, Tensor]) -> None:
    """Raises a `ValueError` that names the cause where the active adapter, or what was made of a model, is unsound."""
    adapter = model.backbone.vision.active_task_adapter
    check_sound({} if adapter is None else adapter.state_dict())
    if not all(bool(tensor.isfinite().all()) for tensor in made_of_it.values()):
        raise ValueError(f"nothing is written, since the result would not be finite: {cause_of_nan(model)}.")


def cause_of_nan(model: JSCPTInjection, pixel_values: Tensor | None = None) -> str:
    """What makes the logits of a model NaN: its images, its base model, its active adapter, or their precision."""
    if pixel_values is not None and not bool(pixel_values.isfinite().all()):
        return "`pixel_values` are not finite. Look at the images, and at the mean and standard deviation"
    with torch.no_grad():
        for name, tensor in model.model.state_dict().items():
            if ".jscpt_" not in name and not bool(tensor.isfinite().all()):
                return f"{name!r} of the base model is not finite. Load a whole one"
        for name, parameter in model.task_adapter.named_parameters():
            if problem := unsound(parameter):
                return f"{name!r} of the adapter {problem}. Load one that was saved before, or start anew"
    if model.model.dtype in (torch.float32, torch.float64):
        return "base model and adapter are finite, so that images are not, or extreme. Look at them"
    return f"the base model overflows in {model.model.dtype}. Load it in float32"
