"""Kernels with a cheap second derivative, for Hessian-vector products (Eq. 11).

Fused attention has no second derivative, and PyTorch's own ones of softmax and SiLU are chains of a dozen
elementwise operations, each a pass over the widest tensors of the model. Written out by hand they are three to five.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

from ..context_variables import set_within

_wanted: ContextVar[bool] = ContextVar("double_backward", default=False)

PRECISIONS = ("float32", "tf32", "bfloat16")
_precision: ContextVar[str] = ContextVar("precision", default="float32")


def upper_level_precision(name: str) -> AbstractContextManager[None]:
    """Within, this one of `PRECISIONS` stands for full precision.

    "tf32": float32 products rounded where the device can; "bfloat16": autocast, the second derivative's kernels too.
    """
    return set_within(_precision, name)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """The parameters' own precision whatever the training's: no autocast, and no TF32 in float32 products.

    Unless `upper_level_precision` says otherwise.
    """
    wanted = _precision.get()
    # `torch.get_float32_matmul_precision` refuses where these have been set, as `--tf32` and `--torch_compile` do.
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    precisions = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if wanted == "tf32" else "ieee"
        with torch.autocast(device_type, torch.bfloat16, enabled=wanted == "bfloat16"):
            yield
    finally:
        for backend, precision in zip(backends, precisions, strict=True):
            backend.fp32_precision = precision


@contextmanager
def twice_differentiable(device_type: str) -> Iterator[None]:
    """Within, the towers compute so that their gradients can be differentiated once more: without fused attention, and
    in `full_precision`.

    The context has to be open for the second backward too, where checkpointed blocks run again.
    """
    with set_within(_wanted, True), full_precision(device_type):
        yield


@torch.compiler.assume_constant_result
def is_double_backward() -> bool:
    """Whether `twice_differentiable` is open."""
    return _wanted.get()


@torch.compiler.assume_constant_result
def _is_inference() -> bool:
    return torch.is_inference_mode_enabled()


def precision_mode(device_type: str) -> tuple:
    """What else results depend on: autocast, the kernels in use, and inference mode."""
    return (
        torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None,
        is_double_backward(),  # other kernels, which differ in the last bits
        _is_inference(),  # tensors made in inference mode cannot take part in autograd later
    )


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """`scaled_dot_product_attention`, differentiable twice.

    Args:
        queries, keys, values: `[..., tokens, d / heads]`.
        mask: boolean, broadcastable to `[..., queries, keys]`; `True` where a query sees a key.
        dropout: probability of dropping an attention weight.
        scale: of the products of queries with keys.
    """
    scores = (queries * scale) @ keys.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return F.dropout(_Softmax.apply(scores), dropout) @ values


def silu(x: Tensor) -> Tensor:
    """`F.silu`, within `twice_differentiable` with the second derivative of this module."""
    return _SiLU.apply(x) if is_double_backward() else F.silu(x)


class _SiLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _SiLUBackward.apply(gradient, x)
        return torch.ops.aten.silu_backward(gradient, x)


class _SiLUBackward(Function):
    """g·f'(x), whose derivatives are f'(x) by g and g·f''(x) by x; f' = s + f·(1 - s), s = σ(x), f = x·s."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
        sigmoid = torch.sigmoid(x)
        slope = torch.addcmul(sigmoid, x * sigmoid, 1 - sigmoid)
        # f'' = s'·(1 - f) + f'·(1 - s) with s' = s·(1 - s)
        curvature = (sigmoid * (1 - x * sigmoid)).add_(slope).mul_(1 - sigmoid)
        ctx.save_for_backward(slope, curvature.mul_(gradient))
        return gradient * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vector: Tensor) -> tuple[Tensor, Tensor]:
        slope, bend = ctx.saved_tensors
        return vector * slope, vector * bend


class _Softmax(Function):
    """Softmax over the last dimension."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = scores.softmax(-1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _SoftmaxBackward.apply(gradient, weights)
        return torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)


class _SoftmaxBackward(Function):
    """w·a with a = g - Σ w·g, the gradient by the scores.

    Its derivative by w is v·a - g·Σ w·v for a vector v. It goes nowhere but through the softmax's own backward, which
    maps what is constant in a row to zero; so g may be replaced by a.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weights: Tensor) -> Tensor:
        centred = gradient - (weights * gradient).sum(-1, keepdim=True)
        ctx.save_for_backward(centred, weights)
        return weights * centred

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vector: Tensor) -> tuple[Tensor, Tensor]:
        centred, weights = ctx.saved_tensors
        weighted = vector * weights
        total = weighted.sum(-1, keepdim=True)
        return weighted.addcmul_(weights, total, value=-1), (vector - total).mul_(centred)
