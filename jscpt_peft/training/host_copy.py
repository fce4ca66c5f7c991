"""Values that the host may read later, without holding up the device for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """A copy of a small tensor, on its way to the host since this was made.

    Reading it waits for what the device was given before, and for nothing after: read a step later, it is there.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor.to("cpu", non_blocking=tensor.is_cuda)  # into pinned memory
        self._arrived = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def tolist(self) -> list[Any]:
        """The values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
