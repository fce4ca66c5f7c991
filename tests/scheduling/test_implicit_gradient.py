"""The whole upper level on a bi-level problem with a closed form (float64).

Lower level: every task has the loss (θ - c_i)ᵀ Q_i (θ - c_i) / 2, so that Σ_i φ_i(Ω) L_i is minimised by
θ* = (Σ_i φ_i Q_i)⁻¹ Σ_i φ_i Q_i c_i. Upper level: L_dev = (θ - d)ᵀ R (θ - d) / 2 at θ*(Ω).
"""

from __future__ import annotations

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
ALL, SOME = torch.ones(TASKS, dtype=torch.bool), torch.tensor([True, False, True, True])
CASES = {
    "defaults": (ALL, {}),
    "as printed": (SOME, {"weight_normalization": "none", "affinity_direction": "outgoing"}),
    "softplus, prompts alone": (ALL, {"parameterization": "softplus", "task_scheduling": False}),
    "tasks alone": (SOME, {"prompt_scheduling": False}),
}


class Problem:
    """With a scheduler away from its start, and the lower level's solution `theta` under it."""

    def __init__(self, present: Tensor, **options) -> None:
        torch.manual_seed(0)
        roots = torch.randn(TASKS + 1, SIZE, SIZE).double()
        *curvatures, self.dev_curvature = roots @ roots.mT / SIZE + 0.5 * torch.eye(SIZE).double()
        self.curvatures, self.present = torch.stack(curvatures), present
        self.centres, self.target = 2 * torch.randn(TASKS, SIZE).double(), torch.randn(SIZE).double()
        self.effect, self.affinity = torch.rand(TASKS).double(), torch.randn(TASKS, TASKS).clamp(-1, 1).double()
        self.scheduler = TaskPromptScheduler(TASKS, **options).double()
        with torch.no_grad():
            for k, parameter in enumerate(self.scheduler.parameters()):
                parameter += 0.3 * torch.tensor([1.0, -1.0, 2.0, 0.5]).double() * (-1) ** k

    def weights(self, omega: Tensor) -> Tensor:
        """φ as a function of one flat Ω `[2N]`."""
        named = dict(zip(dict(self.scheduler.named_parameters()), omega.split(TASKS), strict=True))
        return torch.func.functional_call(self.scheduler, named, (self.effect, self.affinity, self.present))

    @property
    def omega(self) -> Tensor:
        return torch.cat([parameter.detach() for parameter in self.scheduler.parameters()])

    def task_losses(self, theta: Tensor) -> Tensor:
        offsets = theta - self.centres
        return torch.einsum("np,npq,nq->n", offsets, self.curvatures, offsets) / 2

    def dev_loss(self, theta: Tensor) -> Tensor:
        return (theta - self.target) @ self.dev_curvature @ (theta - self.target) / 2

    def solve(self, omega: Tensor) -> Tensor:
        curvatures = torch.einsum("n,npq->npq", self.weights(omega), self.curvatures)
        return torch.linalg.solve(curvatures.sum(0), torch.einsum("npq,nq->p", curvatures, self.centres))

    def implicit_gradient(self, terms: int) -> Tensor:
        """Eqs. 10-11 as training does it: N task gradients, Hessian-vector products, N dot products."""
        theta = self.solve(self.omega).requires_grad_()
        task_gradients = [torch.autograd.grad(loss, theta, create_graph=True)[0] for loss in self.task_losses(theta)]
        task_gradients = torch.stack(task_gradients)
        weights = self.scheduler(self.effect, self.affinity, self.present)
        hvp = hessian_vector_product([weights.detach() @ task_gradients], [theta])
        (v,) = torch.autograd.grad(self.dev_loss(theta), theta)
        p = safeguarded_inverse_hvp(hvp, v, terms=terms).vector
        return torch.cat(hypergradient(weights, task_gradients.detach() @ p, self.scheduler.parameters()))


@pytest.mark.parametrize(("present", "options"), CASES.values(), ids=CASES)
def test_implicit_gradient_is_the_true_gradient(present, options):
    problem = Problem(present, **options)
    omega, ours = problem.omega, problem.implicit_gradient(terms=400)
    # Differentiating the closed form of θ*(Ω), and Eq. 10 written out densely.
    exact = torch.autograd.functional.jacobian(lambda omega: problem.dev_loss(problem.solve(omega)), omega)
    dense = dense_hypergradient(lambda theta, omega: problem.weights(omega) @ problem.task_losses(theta),
                                problem.dev_loss, problem.solve(omega), omega)  # fmt: skip
    assert exact.norm() > 1e-3
    for expected in (exact, dense):
        assert (ours - expected).norm() < 1e-8 * expected.norm()
