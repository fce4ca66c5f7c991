"""Pooled image features that know the task of every image.

`CLIPModel` calls `visual_projection` with the pooled features alone, and Eq. 2 behind it needs the tasks. So they
travel with the tensor itself: neither the order of calls nor other threads can mix them up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Keep rows in their places: conversions and arithmetic with numbers or columns.
KEEPING = {
    *(Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as, Tensor.cpu),
    *(Tensor.cuda, Tensor.clone, Tensor.detach, Tensor.contiguous, Tensor.requires_grad_, torch.clone, torch.detach),
    *(Tensor.mul, Tensor.div, Tensor.add, Tensor.sub, Tensor.__mul__, Tensor.__rmul__, Tensor.__truediv__),
    *(Tensor.__add__, Tensor.__sub__, torch.nn.functional.normalize),
}
TASK_IDS = "_task_ids"


class TaskFeatures(Tensor):
    """A tensor `[B, ...]` with the task ids `[B]` of its rows, which conversions, arithmetic and indexing keep.

    What comes out of any other operation is a plain tensor, whose tasks are not known.
    """

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
            ids = task_ids_of(args[0]) if args and isinstance(args[0], TaskFeatures) else None
            if ids is None or not isinstance(result, Tensor):
                return result
            if function in KEEPING and result.shape[:1] == ids.shape:
                return with_task_ids(result, ids)
            if function is Tensor.__getitem__:
                rows = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
                kept = ids[rows] if isinstance(rows, slice | list | Tensor) or rows is Ellipsis else ids[:0]
                return with_task_ids(result, kept) if result.shape[:1] == kept.shape and kept.dim() == 1 else result
            return result

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # files hold plain tensors

    def __deepcopy__(self, memo: dict) -> TaskFeatures:
        copy = with_task_ids(self.detach().as_subclass(Tensor).clone(), task_ids_of(self).clone())
        memo[id(self)] = copy
        return copy


@torch.compiler.disable
def with_task_ids(features: Tensor, task_ids: Tensor) -> TaskFeatures:
    """The same features `[B, ...]`, which know their task ids `[B]` from now on."""
    tagged = features.as_subclass(TaskFeatures)
    setattr(tagged, TASK_IDS, task_ids)
    return tagged


@torch.compiler.disable
def task_ids_of(features: Tensor) -> Tensor | None:
    """The task ids `[B]` of features that know them."""
    return vars(features).get(TASK_IDS) if isinstance(features, TaskFeatures) else None


@torch.compiler.disable
def plain(features: Tensor) -> Tensor:
    """The same features as a plain tensor."""
    return features.as_subclass(Tensor) if isinstance(features, TaskFeatures) else features
