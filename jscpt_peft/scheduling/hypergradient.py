"""Eqs. 10-11: the gradient of the dev loss with respect to the scheduler, through the lower level's optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HessianVectorProduct = Callable[[Tensor], Tensor]

# The series converges for step sizes below 2 / λ_max; an estimate of λ_max by power iteration comes from below.
STEP_SIZE_MARGIN = 0.9


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All elements of `tensors` as one vector `[P]`, differentiable."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def hessian_vector_product(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> HessianVectorProduct:
    """The product `v [P] -> H v [P]` by differentiating the gradient's own graph once more.

    The graph is kept for any number of products and freed with the returned function. It has to be made by kernels
    that have a second derivative, in float32 or better.

    Args:
        gradients: the loss's gradients with respect to `parameters`, made with `create_graph=True`.
        parameters: θ; the vectors are their elements in this order.

    Raises:
        ValueError: `gradients` carry no graph.
    """
    gradient, parameters = flatten(gradients), tuple(parameters)
    if not gradient.requires_grad:
        raise ValueError("`gradients` carry no graph: make them by torch.autograd.grad(..., create_graph=True)")

    def product(vector: Tensor) -> Tensor:
        # A parameter in which the loss is linear does not occur in the gradient: its rows of H are zero.
        rows = torch.autograd.grad(
            gradient, parameters, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return flatten(rows)

    return product


def neumann_inverse_hvp(hvp: HessianVectorProduct, v: Tensor, terms: int = 3, step_size: float = 1.0) -> Tensor:
    """The truncated Neumann series of H⁻¹v (paper, Eq. 11): `step_size · Σ_{j=0..terms} (I - step_size·H)^j v`.

    It is the paper's with `step_size=1`, and converges to H⁻¹v where H is positive definite and `step_size` below
    2/λ_max. `safeguarded_inverse_hvp` is the same with what a network's Hessian needs.

    Args:
        hvp: the product with the symmetric matrix H, called `terms` times.
        v: any shape that `hvp` takes; usually the dev loss's gradient, `[P]`.

    Raises:
        ValueError: `terms` is negative.
    """
    _check_terms(terms)
    term = total = v
    for _ in range(terms):
        term = term - step_size * hvp(term)
        total = total + term
    return step_size * total


class InverseHVP(NamedTuple):
    """Result of `safeguarded_inverse_hvp`, with what is logged about it."""

    vector: Tensor
    """≈ (H + damping·I)⁻¹ v, shaped like v."""
    step_size: float
    terms: int
    """Terms j >= 1 in the sum: fewer than asked for where they began to grow."""
    largest_eigenvalue: float | None
    """Estimate of |λ|_max of H + damping·I; None where none was made."""


def safeguarded_inverse_hvp(
    hvp: HessianVectorProduct,
    v: Tensor,
    terms: int = 3,
    step_size: float = 1.0,
    damping: float = 0.0,
    power_iterations: int = 3,
    divergence_guard: bool = True,
) -> InverseHVP:
    """`neumann_inverse_hvp` for Hessians that are indefinite or of any scale.

    `s · Σ_{j=0..terms} (I - s(H + damping·I))^j v` with `s = min(step_size, 0.9 / λ)`, λ the estimate of the largest
    absolute eigenvalue by power iteration; the sum ends before the first term whose norm exceeds the one before it
    (negative curvature, an estimate too low, or a product that is not finite), so that its norm is at most
    `s · (terms + 1) · ‖v‖`.

    Power iteration starts at v, and its vectors H v, H² v, ... are those that the series is made of: it costs no
    further product. `hvp` is called at most `terms` times; with `terms=0` never, and the result is `step_size · v`.

    Args:
        hvp: the product with the symmetric matrix H.
        v: `[P]`, the gradient of the dev loss.
        terms: H of the paper.
        step_size: the largest step size; the step size itself with `power_iterations=0`.
        damping: added to H's diagonal; the weight decay of the lower level.
        power_iterations: products before the step size is chosen; at most `terms` of them are made.
        divergence_guard: end the sum where its terms begin to grow; without, all `terms` are added whatever happens.

    Raises:
        ValueError: `terms` or `power_iterations` is negative, or `step_size` is not positive.
    """
    _check_terms(terms)
    if power_iterations < 0:
        raise ValueError(f"`power_iterations` must be at least 0 (0 fixes the step size), got {power_iterations}")
    if not step_size > 0:
        raise ValueError(f"`step_size` must be positive, got {step_size}")

    def product(vector: Tensor) -> Tensor:
        return hvp(vector) + damping * vector

    norm = torch.linalg.vector_norm(v).item()
    if norm == 0:
        return InverseHVP(v, step_size, 0, None)

    # powers[k] is H^k (I - sH)^j v, for as many k as are known and here j = 0, divided by rates[0] ... rates[k - 1],
    # so that high powers do not overflow. For a symmetric H the rates grow towards |λ|_max.
    powers, rates = [v], []
    for _ in range(min(terms, power_iterations)):
        following = product(powers[-1])
        rate = torch.linalg.vector_norm(following).item() / norm
        powers.append(following / rate if rate > 0 else following)
        rates.append(rate)
    eigenvalue = rates[-1] if rates else None
    if eigenvalue is not None and 0 < eigenvalue < math.inf:
        step_size = min(step_size, STEP_SIZE_MARGIN / eigenvalue)

    total, used = v, 0
    while used < terms:
        if len(powers) == 1:
            powers, rates = [powers[0], product(powers[0])], [1.0]
        pairs = zip(powers, powers[1:], rates, strict=False)
        powers = [power - step_size * rate * following for power, following, rate in pairs]
        previous, norm = norm, torch.linalg.vector_norm(powers[0]).item()
        if divergence_guard and not norm <= previous:  # also where it is NaN
            break
        total = total + powers[0]
        used += 1
    return InverseHVP(step_size * total, step_size, used, eigenvalue)


def hypergradient(weights: Tensor, products: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradient of the dev loss with respect to Ω (paper, Eq. 10): `-Σ_i (p·g_i) ∂φ_i/∂Ω`, descend along its negative.

    The mixed derivative ∇_Ω∇_θ L of the scheduled loss `Σ_i φ_i(Ω) L_i(θ)` needs no second differentiation of a
    network, since φ is constant in θ: it is `Σ_i ∇_θ L_i ∂φ_i/∂Ω`.

    Args:
        weights: `[N]`, φ(Ω) with its graph, from `TaskPromptScheduler`.
        products: `[N]`, p·g_i of p ≈ H⁻¹∇_θ L_dev with every task's gradient g_i = ∇_θ L_i; 0 for absent tasks.
        parameters: Ω, a sequence of tensors.

    Returns:
        One gradient a parameter; zeros where the weights do not depend on it.
    """
    parameters = tuple(parameters)
    if not weights.requires_grad:  # both factors switched off: φ is constant
        return tuple(torch.zeros_like(parameter) for parameter in parameters)
    return torch.autograd.grad(weights, parameters, -products.detach(), allow_unused=True, materialize_grads=True)


def _check_terms(terms: int) -> None:
    if terms < 0:
        raise ValueError(f"`terms` must be at least 0, got {terms}")
