"""Has anything changed since a result was kept?"""

from __future__ import annotations

import torch
from torch import nn


def fingerprint(*modules: nn.Module) -> tuple:
    """A key that changes whenever parameters of `modules`, or the precision they are used in, change.

    In-place updates (optimizer, `load_state_dict`) raise a tensor's version counter, and a replaced tensor (`.to`) has
    another address or type. Writing through `tensor.data` escapes it.
    """
    parameters = tuple(
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version, parameter.dtype)
        for module in modules
        for parameter in module.parameters()
    )
    device = next(modules[0].parameters()).device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # Tensors made in inference mode cannot take part in autograd later.
    return parameters, autocast, torch.is_inference_mode_enabled()
