"""Kernels with a second derivative of their own are PyTorch's functions, up to that derivative."""

from __future__ import annotations

import sys

import fork_server
import prompted
import pytest
import torch
from torch.nn import functional as F

from jscpt_peft.model.backbones import double_backward


def same(ours, theirs, inputs):
    """Value, gradient and Hessian-vector product of a nonlinear loss of both functions agree."""
    found = []
    for function in (ours, theirs):
        torch.manual_seed(1)
        inputs = [each.detach().clone().requires_grad_() for each in inputs]
        output = function(*inputs)
        loss = (torch.randn_like(output) * output.tanh()).sum()  # the cotangent of the output depends on the inputs
        gradients = torch.autograd.grad(loss, inputs, create_graph=True)
        vectors = [torch.randn_like(each) for each in inputs]
        second = torch.autograd.grad(gradients, inputs, vectors, allow_unused=True, materialize_grads=True)
        found.append([output, *gradients, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_silu():
    x = torch.linspace(-9, 9, 60, dtype=torch.float64).view(4, 15)
    with double_backward.twice_differentiable("cpu"):
        same(double_backward.silu, F.silu, [x])
        assert double_backward.silu(x.requires_grad_()).grad_fn.name() == "_SiLUBackward"
    assert double_backward.silu(x).grad_fn.name() == "SiluBackward0"


@pytest.mark.parametrize("mask", [None, torch.ones(5, 7, dtype=torch.bool).tril(2)], ids=["all", "masked"])
def test_attention(mask):
    def theirs(queries, keys, values):
        scores = queries @ keys.transpose(-2, -1) * 0.7
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ values

    inputs = [2 * torch.randn(2, 3, tokens, 4, dtype=torch.float64) for tokens in (5, 7, 7)]
    same(lambda *parts: double_backward.attention(*parts, mask, 0.0, 0.7), theirs, inputs)


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
    "pass": "none",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.set_float32_matmul_precision('medium')": "tf32",
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
}
PROGRAM = """
import torch
from jscpt_peft.model.backbones.double_backward import full_precision
{}
backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
before = [backend.fp32_precision for backend in backends]
with full_precision("cpu"):
    assert [backend.fp32_precision for backend in backends] == ["ieee"] * 2
assert [backend.fp32_precision for backend in backends] == before and "{}" in before
"""


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_full_precision_whoever_has_asked_for_less(setting):
    """By PyTorch's old way or its new one, which must not be mixed; each in a process of its own."""
    run = fork_server.run([sys.executable, "-c", PROGRAM.format(setting, SETTINGS[setting])])
    assert run.returncode == 0, run.stderr
