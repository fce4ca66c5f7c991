"""Pooled image features that know the task of every image.

`CLIPModel` calls `visual_projection` with the pooled features alone, and Eq. 2 behind it needs the tasks. So they
travel with the tensor itself: neither the order of calls nor other threads can mix them up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _named(*names: str) -> set[Any]:
    """The functions of these names, of `torch` and of `Tensor`."""
    return {found for name in names for home in (torch, Tensor) if (found := getattr(home, name, None)) is not None}


# Rows stay in their places: conversions and arithmetic.
KEEPING = _named("to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "clone", "detach")
KEEPING |= _named("contiguous", "requires_grad_", "mul", "div", "true_divide", "add", "sub", "rsub", "neg", "pow")
KEEPING |= _named("where", "nan_to_num", "clamp", "abs", "sqrt", "__add__", "__radd__", "__sub__", "__rsub__")
KEEPING |= _named("__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__neg__", "__pow__", "add_", "sub_", "mul_")
KEEPING |= {torch.nn.functional.normalize, torch.nn.functional.dropout}
# Rows are chosen or moved, along the first dimension as the task ids are, or within the rows.
CHOOSING = _named("chunk", "split", "tensor_split", "narrow", "index_select", "flip", "roll", "__getitem__")


class TaskFeatures(Tensor):
    """A tensor `[B, ...]` with the task ids `[B]` of its rows.

    Conversions, arithmetic, choices of rows and `torch.cat` keep them. What comes out of any other operation has lost
    them, and says so where they are needed.
    """

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _applied(function, args, kwargs or {})

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # files hold plain tensors

    def __deepcopy__(self, memo: dict) -> TaskFeatures:
        ids = vars(self).get("_task_ids")
        copy = _tagged(self.detach().as_subclass(Tensor).clone(), None if ids is None else ids.clone())
        memo[id(self)] = copy
        return copy


@torch.compiler.disable
def _applied(function: Any, args: tuple, kwargs: dict) -> Any:
    """What a function gives, its tensors with the ids of their rows or without any."""
    with torch._C.DisableTorchFunctionSubclass():
        result = function(*args, **kwargs)
        attribute = getattr(function, "__name__", "") == "__get__" and function.__self__ is not Tensor.data
        if attribute or function is Tensor.as_subclass:
            return result
        if isinstance(result, Tensor):
            return _tagged(result, _ids_of_result(function, args, kwargs, result))
        if isinstance(result, tuple | list) and result and all(isinstance(each, Tensor) for each in result):
            ids = _ids_of_result(function, args, kwargs, result)
            ids = [None] * len(result) if ids is None else ids
            return type(result)(_tagged(*pair) for pair in zip(result, ids, strict=True))
        return result


def _ids_of_result(function: Any, args: tuple, kwargs: dict, result: Any) -> Any:
    """Task ids of a function's result, or of each of its results; `None` where they are lost."""
    operands = [*args, *kwargs.values()]
    if function in (torch.cat, torch.concat, torch.concatenate):
        parts = [vars(each).get("_task_ids") for each in args[0] if isinstance(each, TaskFeatures)]
        along_rows = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) == 0
        return torch.cat(parts) if along_rows and len(parts) == len(args[0]) and not _any_lost(parts) else None
    known = [vars(each).get("_task_ids") for each in operands if isinstance(each, TaskFeatures)]
    if not known or _any_lost(known) or any(not torch.equal(known[0], each) for each in known[1:]):
        return None
    ids = known[0]
    if function in CHOOSING and isinstance(args[0], TaskFeatures):
        try:
            chosen = function(ids, *_first_of_tuple(function, args[1:]), **kwargs)
        except (IndexError, RuntimeError):  # along another dimension, which the ids do not have
            return ids if isinstance(result, Tensor) else [ids] * len(result)
        return chosen
    return ids if function in KEEPING else None


def _first_of_tuple(function: Any, arguments: tuple) -> tuple:
    """An index without what it says of other dimensions than the first."""
    if function is Tensor.__getitem__ and isinstance(arguments[0], tuple):
        return (arguments[0][0] if arguments[0] else ...,)
    return arguments


def _any_lost(ids: list[Tensor | None]) -> bool:
    return any(each is None for each in ids)


def _tagged(result: Tensor, ids: Tensor | None) -> TaskFeatures:
    """A result with its ids, unless they do not fit its rows."""
    tagged = result.as_subclass(TaskFeatures)
    tagged._task_ids = ids if ids is not None and ids.dim() == 1 and result.shape[:1] == ids.shape else None
    return tagged


@torch.compiler.disable
def with_task_ids(features: Tensor, task_ids: Tensor) -> TaskFeatures:
    """The same features `[B, ...]`, which know their task ids `[B]` from now on."""
    return _tagged(features, task_ids)


@torch.compiler.disable
def task_ids_of(features: Tensor) -> Tensor | None:
    """The task ids `[B]` of features that know them; `None` for a plain tensor.

    Raises:
        ValueError: they have been lost on the way.
    """
    if not isinstance(features, TaskFeatures):
        return None
    ids = vars(features).get("_task_ids")
    if ids is None:
        raise ValueError(
            "the tasks of these image features got lost in an operation after `vision_model`: pass its features as "
            "they are, or use `get_image_features(..., task_ids=...)`."
        )
    return ids


@torch.compiler.disable
def plain(features: Tensor) -> Tensor:
    """The same features as a plain tensor."""
    return features.as_subclass(Tensor) if isinstance(features, TaskFeatures) else features
