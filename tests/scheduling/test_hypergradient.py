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


def symmetric(eigenvalues: torch.Tensor) -> torch.Tensor:
    basis, _ = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues)))
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
GOOD, V = symmetric(torch.linspace(0.5, 1.5, 8).double()), normal(8, seed=1)
BAD, LONG = symmetric(torch.linspace(-1, 50, 30).double()), normal(30, seed=1)


@pytest.mark.parametrize("terms", [0, 1, 3, 6])
@pytest.mark.parametrize("step_size", [1.0, 0.3])
def test_neumann_series_is_the_formula(terms, step_size):
    hvp, remainder = Counted(GOOD), torch.eye(8).double() - step_size * GOOD
    series = sum(torch.linalg.matrix_power(remainder, j) for j in range(terms + 1))
    assert_close(neumann_inverse_hvp(hvp, V, terms=terms, step_size=step_size), step_size * series @ V)
    assert hvp.calls == terms
    assert_close(neumann_inverse_hvp(hvp, V), neumann_inverse_hvp(hvp, V, terms=3, step_size=1.0))  # the paper's


def test_neumann_series_tends_to_the_dense_solve():
    exact = torch.linalg.solve(GOOD, V)
    errors = [(neumann_inverse_hvp(Counted(GOOD), V, terms=t) - exact).norm().item() for t in (0, 3, 10, 60)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12 * exact.norm().item()


@pytest.mark.parametrize("power_iterations", [0, 1, 3, 20])
@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("terms", [0, 1, 5, 12])
def test_safeguarded_series_is_the_same_series(power_iterations, damping, terms):
    """Its products with v serve the eigenvalue and the series alike; the sum must be the plain one's."""
    hvp, damped = Counted(GOOD), GOOD + damping * torch.eye(8).double()
    result = safeguarded_inverse_hvp(hvp, V, terms, 0.9, damping, power_iterations)
    expected = neumann_inverse_hvp(Counted(damped), V, terms, result.step_size)
    assert_close(result.vector, expected, rtol=1e-10, atol=1e-10)
    assert result.terms == terms == hvp.calls  # without terms nothing is differentiated twice
    assert (result.largest_eigenvalue is None) == (min(terms, power_iterations) == 0)


def test_step_size_is_the_smaller_of_the_given_and_the_safe_one():
    def solve(**options):
        return safeguarded_inverse_hvp(Counted(BAD), LONG, terms=8, **{"power_iterations": 8, **options})

    result = solve()
    assert result.largest_eigenvalue == pytest.approx(50, rel=0.1)
    assert result.step_size == pytest.approx(0.9 / result.largest_eigenvalue)
    assert solve(step_size=1e-3).step_size == 1e-3
    assert solve(power_iterations=0)[1::2] == (1.0, None)
    assert solve(damping=10.0).largest_eigenvalue == pytest.approx(result.largest_eigenvalue + 10, rel=0.05)


@pytest.mark.parametrize("terms", [1, 30, 3000])
@pytest.mark.parametrize("power_iterations", [0, 3])
@pytest.mark.parametrize("step_size", [1.0, 0.02])
@pytest.mark.parametrize("matrix", [BAD, -BAD], ids=["mostly positive", "mostly negative"])
def test_nothing_diverges_on_an_indefinite_matrix(terms, power_iterations, step_size, matrix):
    result = safeguarded_inverse_hvp(Counted(matrix), LONG, terms, step_size, power_iterations=power_iterations)
    assert result.vector.norm() <= result.step_size * (result.terms + 1) * LONG.norm() * (1 + 1e-12)
    assert 0 <= result.terms <= terms
    if terms == 3000:  # the unguarded series does diverge here
        assert result.terms < terms
        assert not neumann_inverse_hvp(Counted(matrix), LONG, terms, result.step_size).norm() < 1e6 * LONG.norm()


def test_early_stop_returns_the_sum_before_the_growth():
    """Terms of diag(0.1, -0.5) at v = (3, 1), step 1, are (3·0.9^j, 1.5^j): they shrink up to j = 1."""
    hvp, v = Counted(torch.diag(torch.tensor([0.1, -0.5])).double()), torch.tensor([3.0, 1.0]).double()
    result = safeguarded_inverse_hvp(hvp, v, terms=50, step_size=1.0, power_iterations=0)
    assert (result.terms, hvp.calls) == (1, 2)
    assert_close(result.vector, neumann_inverse_hvp(hvp, v, terms=1))


def test_high_powers_do_not_overflow_in_float32():
    result = safeguarded_inverse_hvp(Counted(1e4 * BAD.float()), LONG.float(), terms=20, power_iterations=20)
    scaled = safeguarded_inverse_hvp(Counted(BAD), LONG, terms=20, power_iterations=20)
    assert result.largest_eigenvalue == pytest.approx(1e4 * scaled.largest_eigenvalue, rel=1e-4)
    assert result.terms == scaled.terms > 0
    assert_close(1e4 * result.vector.double(), scaled.vector, rtol=1e-3, atol=1e-4)


def test_products_and_vectors_without_a_number_or_a_direction():
    for value in (torch.nan, torch.inf):  # the gradient of the dev loss is left
        result = safeguarded_inverse_hvp(lambda u, value=value: torch.full_like(u, value), V, step_size=0.5)
        assert_close(result.vector, 0.5 * V)
        assert result.terms == 0
    assert safeguarded_inverse_hvp(Counted(GOOD), 0 * V).vector.eq(0).all()
    flat = safeguarded_inverse_hvp(Counted(0 * GOOD), V, terms=3, step_size=0.5)
    assert_close(flat.vector, 0.5 * 4 * V)
    assert flat.largest_eigenvalue == 0


def test_hessian_vector_product_is_the_hessian():
    """Two tensors of different shapes, one that the loss does not curve in, one that it does not depend on."""
    parameters = [normal(2, 3), normal(4, seed=1), normal(2, seed=2), normal(1, seed=3)]

    def loss(flat):
        matrix, column, linear = flat[:6].view(2, 3), flat[6:10], flat[10:12]
        return (matrix.exp().sum(0) * column[:3]).tanh().sum() + column.pow(4).sum() + linear.sum()

    for parameter in parameters:
        parameter.requires_grad_()
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
    hvp = hessian_vector_product(torch.autograd.grad(loss(flat), parameters, create_graph=True), parameters)
    assert_close(torch.stack([hvp(row) for row in torch.eye(13).double()]), dense_hessian(loss, flat))
    v, h = normal(13, seed=4), 1e-5
    slopes = [torch.autograd.functional.jacobian(loss, flat.detach() + sign * h * v) for sign in (1, -1)]
    assert_close(hvp(v), (slopes[0] - slopes[1]) / (2 * h), rtol=1e-6, atol=1e-6)


def test_hypergradient_is_minus_the_products_times_the_jacobian():
    alpha, beta, idle = (normal(3, seed=s).requires_grad_() for s in (1, 2, 3))
    products = normal(3, seed=4)

    def weights(alpha, beta):
        return torch.softmax(alpha * beta.sin(), dim=0)

    jacobians = torch.autograd.functional.jacobian(weights, (alpha, beta))
    gradients = hypergradient(weights(alpha, beta), products, [alpha, beta, idle])
    for gradient, expected in zip(gradients, [*(-products @ each for each in jacobians), torch.zeros(3).double()],
                                  strict=True):  # fmt: skip
        assert_close(gradient, expected)
    assert all(each.eq(0).all() for each in hypergradient(torch.ones(3), products, [alpha, idle]))


def test_bad_arguments():
    for series in (neumann_inverse_hvp, safeguarded_inverse_hvp):
        with pytest.raises(ValueError, match="`terms` must be at least 0, got -1"):
            series(Counted(GOOD), V, terms=-1)
    for option, message in {"power_iterations": "at least 0", "step_size": "positive, got -1"}.items():
        with pytest.raises(ValueError, match=f"`{option}` must be {message}"):
            safeguarded_inverse_hvp(Counted(GOOD), V, **{option: -1})
    parameter = normal(2).requires_grad_()
    with pytest.raises(ValueError, match=r"`gradients` carry no graph.*create_graph=True"):
        hessian_vector_product(torch.autograd.grad(parameter.pow(2).sum(), parameter), [parameter])
