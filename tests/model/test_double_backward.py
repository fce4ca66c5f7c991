"""Kernels with a second derivative of their own are PyTorch's functions, up to that derivative."""

from __future__ import annotations

import sys

import fork_server
import prompted
import pytest
import torch
from torch.nn import functional as F

from jscpt_peft.model.backbones import double_backward


def products(function, inputs, vector_seed=1):
    """Value, gradient and Hessian-vector product of the sum of `function`'s weighted outputs."""
    generator = torch.Generator().manual_seed(vector_seed)
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    output = function(*inputs)
    weights = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    # A nonlinear loss on top, so that the cotangent of the output depends on the inputs too.
    loss = (weights * output.tanh()).sum()
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    vectors = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in inputs]
    second = torch.autograd.grad(gradients, inputs, vectors, allow_unused=True, materialize_grads=True)
    return [output, *gradients, *second]


def same(ours, theirs, inputs):
    for one, other in zip(products(ours, inputs), products(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_silu():
    x = torch.linspace(-9, 9, 60, dtype=torch.float64).view(4, 15)
    with double_backward.twice_differentiable("cpu"):
        same(double_backward.silu, F.silu, [x])
        assert double_backward.silu(x.requires_grad_()).grad_fn.name() == "_SiLUBackward"
    assert double_backward.silu(x).grad_fn.name() == "SiluBackward0"


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        2 * torch.randn(2, 3, tokens, 4, generator=generator, dtype=torch.float64) for tokens in (5, 7, 7)
    )
    mask = torch.ones(5, 7, dtype=torch.bool).tril(2) if masked else None

    def theirs(queries, keys, values):
        scores = queries @ keys.transpose(-2, -1) * 0.7
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ values

    same(lambda *parts: double_backward.attention(*parts, mask, 0.0, 0.7), theirs, [queries, keys, values])


def test_the_context_ends_with_an_error_too():
    with pytest.raises(KeyError), double_backward.twice_differentiable("cpu"):
        assert double_backward.is_double_backward()
        raise KeyError
    assert not double_backward.is_double_backward()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_the_same_function_within(implementation):
    model = prompted.prompted_clip(implementation=implementation)
    batch = prompted.batch(model)
    plain = model.classify(*batch).task_losses
    with double_backward.twice_differentiable("cpu"):
        torch.testing.assert_close(model.classify(*batch).task_losses, plain, atol=1e-12, rtol=1e-12)


SETTINGS = {
    "none": "",
    "--tf32": "torch.backends.fp32_precision = 'tf32'",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "allow_tf32": "torch.backends.cuda.matmul.allow_tf32 = True",
}
PROGRAM = """
import torch
from jscpt_peft.model.backbones.double_backward import full_precision
{setting}
backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
before = [backend.fp32_precision for backend in backends]
with full_precision("cpu"):
    assert [backend.fp32_precision for backend in backends] == ["ieee"] * 2
assert [backend.fp32_precision for backend in backends] == before
print(before)
"""


@pytest.mark.slow
def test_full_precision_whoever_has_asked_for_less():
    """By PyTorch's old way or its new one, which must not be mixed; each in a process of its own."""
    programs = [PROGRAM.format(setting=setting) for setting in SETTINGS.values()]
    runs = [fork_server.run([sys.executable, "-c", each]) for each in programs]
    found = dict(zip(SETTINGS, (run.stdout.strip() for run in runs), strict=True))
    assert all(run.returncode == 0 for run in runs)
    assert found["none"] == "['none', 'none']"
    assert all("tf32" in found[name] for name in SETTINGS if name != "none")
