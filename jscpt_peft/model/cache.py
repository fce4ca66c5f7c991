"""Results that are kept while nothing that they depend on changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from .context_variables import set_within


class CacheKey:
    """Equal to another one where the same parameters had the same values.

    In-place updates (optimizer, `load_state_dict`) raise a tensor's version counter, and a replaced tensor (`.to`) has
    another address or type. Writing through `tensor.data` escapes it. The tensors themselves are remembered, weakly:
    what takes the address of a freed one is not taken for it.

    Args:
        modules: whose parameters count, in order.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        self._tensors = [weakref.ref(parameter) for parameter in parameters]
        self._state = tuple((each.data_ptr(), _version(each), each.dtype) for each in parameters)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CacheKey) or self._state != other._state:
            return False
        pairs = [(one(), another()) for one, another in zip(self._tensors, other._tensors, strict=True)]
        return all(one is another and one is not None for one, another in pairs)

    def __hash__(self) -> int:
        return hash(self._state)


_held: ContextVar[bool] = ContextVar("held", default=False)


def results_held() -> AbstractContextManager[None]:
    """Within, this thread takes what is kept for true, and walks over no parameters to see whether it is.

    For a loop that changes nothing but what is not kept: the adapter, not the base model.
    """
    return set_within(_held, True)


@torch.compiler.assume_constant_result
def _are_held() -> bool:
    return _held.get()


class Cache:
    """The latest result per mode. Any number of threads may use it: entries are replaced as a whole, never changed."""

    def __init__(self) -> None:
        self._entries: dict[Any, tuple[CacheKey, Any]] = {}

    def get(self, mode: Any, key: Callable[[], CacheKey], make: Callable[[], Any], hold: bool = False) -> Any:
        """The result kept under `mode` if its key is still the same, else what `make` gives, which is kept.

        Args:
            mode: results of different modes are kept side by side; there should be few.
            key: what the result depends on.
            make: makes it.
            hold: whether `results_held` applies to it.
        """
        entry = self._entries.get(mode)
        if hold and entry is not None and _are_held():
            return entry[1]
        now = key()
        if entry is None or entry[0] != now:
            entry = now, make()
            self._entries[mode] = entry
        return entry[1]

    def __getstate__(self) -> dict:
        return {"_entries": {}}  # a copy, or what comes out of a pickle, starts empty: its parameters are others


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
