"""Has anything changed since a result was kept?"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from .second_order import second_order


class Fingerprint:
    """Equal to another one where the same parameters had the same values, and were used in the same precision.

    In-place updates (optimizer, `load_state_dict`) raise a tensor's version counter, and a replaced tensor (`.to`) has
    another address or type. Writing through `tensor.data` escapes it. The tensors themselves are remembered, weakly:
    what takes the address of a freed one is not taken for it.

    Args:
        modules: whose parameters count, in order.
    """

    def __init__(self, *modules: nn.Module) -> None:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        self._tensors = [weakref.ref(parameter) for parameter in parameters]
        device = parameters[0].device.type
        self._state = (
            tuple((each.data_ptr(), _version(each), each.dtype) for each in parameters),
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
            second_order(),  # other kernels, which differ in the last bits
            torch.is_inference_mode_enabled(),  # tensors made in inference mode cannot take part in autograd later
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint) or self._state != other._state:
            return False
        pairs = [(one(), another()) for one, another in zip(self._tensors, other._tensors, strict=True)]
        return all(one is another and one is not None for one, another in pairs)

    def __getstate__(self) -> dict:
        return {"_state": None, "_tensors": []}  # a copy, or what comes out of a pickle, equals none that is taken

    def __hash__(self) -> int:
        return hash(self._state)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
