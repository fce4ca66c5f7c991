"""The Neumann series and its safeguards on explicit matrices (float64)."""

from __future__ import annotations

import pytest
import torch
from oracles import dense_hessian
from torch.testing import assert_close

from jscpt_peft.scheduling import (
    hessian_vector_product,
    hypergradient,
    neumann_inverse_hvp,
    safeguarded_inverse_hvp,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def symmetric(eigenvalues: torch.Tensor, seed: int = 0) -> torch.Tensor:
    basis, _ = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))
    return basis * eigenvalues @ basis.T


class Counted:
    """The product with a matrix, counting its calls."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self.calls = 0

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.matrix @ vector


# Positive definite, eigenvalues 0.5 ... 1.5; and what a network has: indefinite, far from 1.
GOOD = symmetric(torch.linspace(0.5, 1.5, 8).double())
BAD = symmetric(torch.linspace(-1, 50, 30).double())


@pytest.mark.parametrize("terms", [0, 1, 3, 6])
@pytest.mark.parametrize("step_size", [1.0, 0.3])
def test_neumann_series_is_the_formula(terms, step_size):
    v, hvp = normal(8, seed=1), Counted(GOOD)
    remainder = torch.eye(8).double() - step_size * GOOD
    series = sum(torch.linalg.matrix_power(remainder, j) for j in range(terms + 1))
    assert_close(neumann_inverse_hvp(hvp, v, terms=terms, step_size=step_size), step_size * series @ v)
    assert hvp.calls == terms
    paper = neumann_inverse_hvp(hvp, v)
    assert_close(paper, neumann_inverse_hvp(hvp, v, terms=3, step_size=1.0))


def test_neumann_series_tends_to_the_dense_solve():
    v = normal(8, seed=1)
    exact = torch.linalg.solve(GOOD, v)
    errors = [(neumann_inverse_hvp(lambda u: GOOD @ u, v, terms=t) - exact).norm().item() for t in (0, 3, 10, 60)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12 * exact.norm().item()


@pytest.mark.parametrize("power_iterations", [0, 1, 3, 5, 20])
@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("terms", [1, 3, 5, 12])
def test_safeguarded_series_is_the_same_series(power_iterations, damping, terms):
    """Its products with v serve the eigenvalue and the series alike; the sum must be the plain one's."""
    v, hvp = normal(8, seed=1), Counted(GOOD)
    result = safeguarded_inverse_hvp(hvp, v, terms, 0.9, damping, power_iterations)
    damped = GOOD + damping * torch.eye(8).double()
    expected = neumann_inverse_hvp(lambda u: damped @ u, v, terms, result.step_size)
    assert_close(result.vector, expected, rtol=1e-10, atol=1e-10)
    assert result.terms == terms and hvp.calls == terms
    assert result.vector.shape == v.shape


def test_step_size_is_the_smaller_of_the_given_and_the_safe_one():
    v = normal(30, seed=1)
    result = safeguarded_inverse_hvp(lambda u: BAD @ u, v, terms=8, step_size=1.0, power_iterations=8)
    assert result.largest_eigenvalue == pytest.approx(50, rel=0.1)
    assert result.step_size == pytest.approx(0.9 / result.largest_eigenvalue)
    assert safeguarded_inverse_hvp(lambda u: BAD @ u, v, step_size=1e-3).step_size == 1e-3
    fixed = safeguarded_inverse_hvp(lambda u: BAD @ u, v, step_size=1.0, power_iterations=0)
    assert fixed.step_size == 1.0 and fixed.largest_eigenvalue is None
    damped = safeguarded_inverse_hvp(lambda u: BAD @ u, v, terms=8, damping=10.0, power_iterations=8)
    assert damped.largest_eigenvalue == pytest.approx(result.largest_eigenvalue + 10, rel=0.05)


def test_the_estimate_grows_with_the_iterations_and_stays_below():
    v = normal(30, seed=1)
    estimates = [
        safeguarded_inverse_hvp(lambda u: BAD @ u, v, terms=k, power_iterations=k).largest_eigenvalue
        for k in (1, 2, 4, 8, 100)
    ]
    assert estimates == sorted(estimates)
    assert estimates[-1] == pytest.approx(50, rel=1e-3) and estimates[-1] <= 50 * (1 + 1e-12)


@pytest.mark.parametrize("terms", [1, 3, 30, 3000])
@pytest.mark.parametrize("power_iterations", [0, 1, 3])
@pytest.mark.parametrize("step_size", [1.0, 0.02])
@pytest.mark.parametrize("matrix", [BAD, -BAD], ids=["mostly positive", "mostly negative"])
def test_nothing_diverges_on_an_indefinite_matrix(terms, power_iterations, step_size, matrix):
    v = normal(30, seed=1)
    result = safeguarded_inverse_hvp(lambda u: matrix @ u, v, terms, step_size, power_iterations=power_iterations)
    assert result.vector.isfinite().all()
    assert result.vector.norm() <= result.step_size * (result.terms + 1) * v.norm() * (1 + 1e-12)
    assert 0 <= result.terms <= terms
    if terms == 3000:  # the unguarded series does diverge here
        assert result.terms < terms
        plain = neumann_inverse_hvp(lambda u: matrix @ u, v, terms, result.step_size)
        assert not plain.norm() < 1e6 * v.norm()


def test_early_stop_returns_the_sum_before_the_growth():
    """Terms of diag(0.1, -0.5) at v = (3, 1), step 1, are (3·0.9^j, 1.5^j): they shrink up to j = 2."""
    matrix, v = torch.diag(torch.tensor([0.1, -0.5])).double(), torch.tensor([3.0, 1.0]).double()
    norms = [((3 * 0.9**j) ** 2 + (1.5**j) ** 2) ** 0.5 for j in range(5)]
    used = next(j for j in range(4) if norms[j + 1] > norms[j])
    hvp = Counted(matrix)
    result = safeguarded_inverse_hvp(hvp, v, terms=50, step_size=1.0, power_iterations=0)
    assert result.terms == used
    assert_close(result.vector, neumann_inverse_hvp(lambda u: matrix @ u, v, terms=used))
    assert hvp.calls == used + 1


def test_without_terms_nothing_is_differentiated_twice():
    v, hvp = normal(8), Counted(GOOD)
    assert_close(neumann_inverse_hvp(hvp, v, terms=0, step_size=0.5), 0.5 * v)
    result = safeguarded_inverse_hvp(hvp, v, terms=0, step_size=0.5)
    assert_close(result.vector, 0.5 * v)
    assert hvp.calls == 0
    assert (result.step_size, result.terms, result.largest_eigenvalue) == (0.5, 0, None)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_products_that_are_not_finite_leave_the_gradient_of_the_dev_loss(value):
    v = normal(5)
    result = safeguarded_inverse_hvp(lambda u: torch.full_like(u, value), v, step_size=0.5)
    assert_close(result.vector, 0.5 * v)
    assert result.terms == 0


def test_high_powers_do_not_overflow_in_float32():
    v, matrix = normal(30, seed=1).float(), 1e4 * BAD.float()
    result = safeguarded_inverse_hvp(lambda u: matrix @ u, v, terms=20, power_iterations=20)
    scaled = safeguarded_inverse_hvp(lambda u: BAD @ u, v.double(), terms=20, power_iterations=20)
    assert result.largest_eigenvalue == pytest.approx(1e4 * scaled.largest_eigenvalue, rel=1e-4)
    assert result.terms == scaled.terms > 0
    assert_close(1e4 * result.vector.double(), scaled.vector, rtol=1e-3, atol=1e-4)


def test_zero_vector_and_zero_matrix():
    zero = safeguarded_inverse_hvp(lambda u: BAD @ u, torch.zeros(30).double())
    assert zero.vector.eq(0).all()
    v = normal(30)
    flat = safeguarded_inverse_hvp(lambda u: 0 * u, v, terms=3, step_size=0.5)
    assert_close(flat.vector, 0.5 * 4 * v)
    assert flat.largest_eigenvalue == 0


def test_hessian_vector_product_is_the_hessian():
    """Two tensors of different shapes, one that the loss does not curve in, one that it does not depend on."""
    matrix, column = normal(2, 3).requires_grad_(), normal(4, seed=1).requires_grad_()
    linear, unused = normal(2, seed=2).requires_grad_(), normal(1, seed=3).requires_grad_()
    parameters = [matrix, column, linear, unused]

    def loss(matrix, column, linear):
        return (matrix.exp().sum(0) * column[:3]).tanh().sum() + column.pow(4).sum() + linear.sum()

    gradients = torch.autograd.grad(
        loss(*parameters[:3]), parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    hvp = hessian_vector_product(gradients, parameters)

    def flat_loss(vector):
        return loss(vector[:6].view(2, 3), vector[6:10], vector[10:12])

    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    dense = dense_hessian(flat_loss, flat)
    assert_close(torch.stack([hvp(row) for row in torch.eye(13).double()]), dense)

    v, h = normal(13, seed=4), 1e-5
    slopes = [torch.autograd.functional.jacobian(flat_loss, flat + sign * h * v) for sign in (1, -1)]
    assert_close(hvp(v), (slopes[0] - slopes[1]) / (2 * h), rtol=1e-6, atol=1e-6)


def test_hypergradient_is_minus_the_products_times_the_jacobian():
    alpha, beta, idle = (normal(3, seed=s).requires_grad_() for s in (1, 2, 3))
    products = normal(3, seed=4)

    def weights(alpha, beta):
        return torch.softmax(alpha * beta.sin(), dim=0)

    jacobians = torch.autograd.functional.jacobian(weights, (alpha, beta))
    gradients = hypergradient(weights(alpha, beta), products, [alpha, beta, idle])
    assert_close(gradients[0], -products @ jacobians[0])
    assert_close(gradients[1], -products @ jacobians[1])
    assert gradients[2].eq(0).all()
    constant = hypergradient(torch.ones(3), products, [alpha, idle])
    assert [g.shape for g in constant] == [(3,), (3,)] and all(g.eq(0).all() for g in constant)


def test_bad_arguments():
    v = normal(8)
    with pytest.raises(ValueError, match="`terms` must be at least 0, got -1"):
        neumann_inverse_hvp(lambda u: u, v, terms=-1)
    with pytest.raises(ValueError, match="`terms` must be at least 0, got -1"):
        safeguarded_inverse_hvp(lambda u: u, v, terms=-1)
    with pytest.raises(ValueError, match="`power_iterations` must be at least 0"):
        safeguarded_inverse_hvp(lambda u: u, v, power_iterations=-1)
    with pytest.raises(ValueError, match="`step_size` must be positive, got 0"):
        safeguarded_inverse_hvp(lambda u: u, v, step_size=0)
    parameter = normal(2).requires_grad_()
    with pytest.raises(ValueError, match=r"`gradients` carry no graph.*create_graph=True"):
        hessian_vector_product(torch.autograd.grad(parameter.pow(2).sum(), parameter), [parameter])
