"""The implicit gradient of the dev loss with respect to Ω, for a JSCPT model (Eqs. 10-11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jscpt_peft.model.intervention import Views
from jscpt_peft.scheduling import InverseHVP, hessian_vector_product, hypergradient, safeguarded_inverse_hvp

from .task_gradients import scheduled_gradient, task_products


@contextmanager
def twice_differentiable(device_type: str) -> Iterator[None]:
    """Float32 and the MATH attention kernel: fused kernels have no second derivative, bfloat16 spoils it (by 5 %)."""
    with torch.autocast(device_type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


def dev_gradient(
    model: PeftModel, parameters: Sequence[Tensor], pixel_values: Tensor, task_ids: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss Σ_i L_i of a dev batch (Eq. 8) and its gradient `[P]` with respect to the parameters, in float32."""
    with torch.autocast(pixel_values.device.type, enabled=False):
        loss = model.classify(pixel_values, task_ids, labels).task_losses.nansum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.detach(), torch.cat([gradient.reshape(-1) for gradient in gradients])


def implicit_gradient(
    views: Views,
    parameters: Sequence[Tensor],
    lower_gradients: Views,
    step_gradients: Views,
    weights: Tensor,
    omega: Sequence[nn.Parameter],
    dev: Tensor,
    terms: int,
    step_size: float,
    damping: float = 0.0,
    power_iterations: int = 3,
) -> tuple[tuple[Tensor, ...], InverseHVP]:
    """∇_Ω L_dev by the truncated Neumann series (Eq. 11), one gradient a parameter of Ω.

    Args:
        views: `model.task_views()` that the lower gradients were made with.
        parameters: θ.
        lower_gradients: the lower batch's gradients per task, made with `create_graph=True` where `terms` > 0; the
            Hessian is that of Σ_i φ_i L_i on this batch.
        step_gradients: g_i of the whole step.
        weights: `[N]` φ(Ω) with its graph.
        omega: Ω.
        dev: `[P]` gradient of the dev loss with respect to θ.
        terms: H; 0 replaces the inverse Hessian by `step_size` and makes no Hessian-vector product.
        step_size, damping, power_iterations: as for `safeguarded_inverse_hvp`.
    """

    def no_product(vector: Tensor) -> Tensor:
        raise AssertionError(f"a Hessian-vector product was asked for with terms = 0 ({vector.shape})")

    product = no_product
    if terms > 0:
        lower = scheduled_gradient(views, parameters, lower_gradients, weights.detach(), create_graph=True)
        product = hessian_vector_product(lower, parameters)
    inverse = safeguarded_inverse_hvp(product, dev, terms, step_size, damping, power_iterations)
    products = task_products(views, parameters, step_gradients, inverse.vector)
    return hypergradient(weights, products.to(weights.dtype), omega), inverse
