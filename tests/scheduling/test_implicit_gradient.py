"""The whole upper level on a bi-level problem with a closed form (float64).

Lower level: every task has the loss (θ - c_i)ᵀ Q_i (θ - c_i) / 2, so that Σ_i φ_i(Ω) L_i is minimised by
θ* = (Σ_i φ_i Q_i)⁻¹ Σ_i φ_i Q_i c_i. Upper level: L_dev = (θ - d)ᵀ R (θ - d) / 2 at θ*(Ω).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles import dense_hypergradient
from torch import Tensor

from jscpt_peft.scheduling import (
    TaskPromptScheduler,
    hessian_vector_product,
    hypergradient,
    safeguarded_inverse_hvp,
)

TASKS, SIZE = 4, 6
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def positive_definite() -> Tensor:
    root = normal(SIZE, SIZE)
    return root @ root.T / SIZE + 0.5 * torch.eye(SIZE).double()


CURVATURES = torch.stack([positive_definite() for _ in range(TASKS)])
CENTRES, TARGET, DEV_CURVATURE = 2 * normal(TASKS, SIZE), normal(SIZE), positive_definite()
EFFECT, AFFINITY = torch.rand(TASKS, dtype=torch.float64, generator=GENERATOR), normal(TASKS, TASKS).clamp(-1, 1)

OPTIONS = [
    {},
    {"weight_normalization": "none", "affinity_direction": "outgoing"},
    {"parameterization": "softplus", "task_scheduling": False},
    {"prompt_scheduling": False},
]
ALL, SOME = torch.ones(TASKS, dtype=torch.bool), torch.tensor([True, False, True, True])


def task_losses(theta: Tensor) -> Tensor:
    offsets = theta - CENTRES
    return torch.einsum("np,npq,nq->n", offsets, CURVATURES, offsets) / 2


def dev_loss(theta: Tensor) -> Tensor:
    return (theta - TARGET) @ DEV_CURVATURE @ (theta - TARGET) / 2


def solve_lower(weights: Tensor) -> Tensor:
    curvature = torch.einsum("n,npq->pq", weights, CURVATURES)
    return torch.linalg.solve(curvature, torch.einsum("n,npq,nq->p", weights, CURVATURES, CENTRES))


def weights_of(scheduler: TaskPromptScheduler, present: Tensor) -> Callable[[Tensor], Tensor]:
    """φ as a function of one flat Ω `[2N]`."""

    def weights(omega: Tensor) -> Tensor:
        named, start = {}, 0
        for name, parameter in scheduler.named_parameters():
            named[name] = omega[start : start + parameter.numel()]
            start += parameter.numel()
        return torch.func.functional_call(scheduler, named, (EFFECT, AFFINITY, present))

    return weights


def problem(present: Tensor, options: dict) -> tuple[TaskPromptScheduler, Tensor]:
    """A scheduler away from its start, and the lower level's solution under it."""
    scheduler = TaskPromptScheduler(TASKS, **options).double()
    with torch.no_grad():
        for k, parameter in enumerate(scheduler.parameters()):
            parameter += 0.3 * torch.tensor([1.0, -1.0, 2.0, 0.5]).double() * (-1) ** k
        theta = solve_lower(scheduler(EFFECT, AFFINITY, present))
    return scheduler, theta


def implicit_gradient(scheduler: TaskPromptScheduler, theta: Tensor, present: Tensor, terms: int) -> Tensor:
    """Eqs. 10-11 as training does it: N task gradients, Hessian-vector products, N dot products."""
    theta = theta.clone().requires_grad_()
    losses = task_losses(theta)
    task_gradients = torch.stack([torch.autograd.grad(loss, theta, create_graph=True)[0] for loss in losses])
    weights = scheduler(EFFECT, AFFINITY, present)
    hvp = hessian_vector_product([weights.detach() @ task_gradients], [theta])
    (v,) = torch.autograd.grad(dev_loss(theta), theta)
    p = safeguarded_inverse_hvp(hvp, v, terms=terms).vector
    return torch.cat(hypergradient(weights, task_gradients.detach() @ p, scheduler.parameters()))


def relative_error(value: Tensor, exact: Tensor) -> float:
    return ((value - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("present", [ALL, SOME], ids=["all", "one absent"])
def test_implicit_gradient_is_the_true_gradient(options, present):
    scheduler, theta = problem(present, options)
    weights = weights_of(scheduler, present)
    omega = torch.cat([parameter.detach() for parameter in scheduler.parameters()])
    ours = implicit_gradient(scheduler, theta, present, terms=400)

    # Differentiating the closed form of θ*(Ω).
    exact = torch.autograd.functional.jacobian(lambda omega: dev_loss(solve_lower(weights(omega))), omega)
    assert exact.norm() > 1e-3
    assert relative_error(ours, exact) < 1e-8

    # Eq. 10 written out densely.
    dense = dense_hypergradient(lambda theta, omega: weights(omega) @ task_losses(theta), dev_loss, theta, omega)
    assert relative_error(ours, dense) < 1e-8


def test_descending_it_lowers_the_dev_loss():
    """Row 11 of the design, the sign: with the paper's three terms, by gradient descent on Ω."""
    scheduler, theta = problem(ALL, {})
    before = dev_loss(theta).item()
    for _ in range(20):
        gradient = implicit_gradient(scheduler, theta, ALL, terms=3)
        with torch.no_grad():
            for parameter, part in zip(scheduler.parameters(), gradient.split(TASKS), strict=True):
                parameter -= 0.1 * part
            theta = solve_lower(scheduler(EFFECT, AFFINITY, ALL))
        after = dev_loss(theta).item()
        assert after < before
        before = after
