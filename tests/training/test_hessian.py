"""Hessian-vector products of the real model: three ways to the same vector, and what each of them holds in memory."""

from __future__ import annotations

import gc

import prompted
import pytest
import torch
from small_run import trainable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from jscpt_peft.scheduling.hypergradient import flatten
from jscpt_peft.training.hessian import GraphMemory, HessianProduct, hessian_chunks, kept_graph
from jscpt_peft.training.task_gradients import Batch

WEIGHTS = torch.tensor([0.5, 1.6, 0.9], dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    return prompted.prompted_clip()


@pytest.fixture(scope="module")
def batch(model):
    return Batch(*prompted.batch(model, per_task=3))


@pytest.fixture(scope="module")
def reference(model, batch):
    """A vector, and its product by `torch.autograd.functional.hvp` on the weighted loss of the whole batch."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def loss(*values):
        given = {f"model.{n}": v for n, v in zip(named, values, strict=True)}
        return (WEIGHTS * functional_call(prompted.TaskLosses(model), given, tuple(batch))).sum()

    theta = tuple(parameter.detach() for parameter in named.values())
    generator = torch.Generator().manual_seed(5)
    vector = tuple(torch.randn(each.shape, dtype=torch.float64, generator=generator) for each in theta)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's own second derivatives, not those of `model.second_order`
        product = torch.autograd.functional.hvp(loss, theta, vector)[1]
    return flatten(vector), flatten(product)


def relative_error(vector, reference):
    return float((vector - reference).norm() / reference.norm())


@pytest.mark.parametrize("chunk_size", [None, 3, 2])
def test_exact_product_whatever_the_chunks(model, batch, reference, chunk_size):
    vector, expected = reference
    product = HessianProduct(model, trainable(model), hessian_chunks([batch], None, chunk_size), WEIGHTS)
    for _ in range(2):  # the second product may use what the first kept
        assert relative_error(product(vector), expected) < 1e-12


def test_product_of_the_kept_graph_of_the_lower_step(model, batch, reference):
    vector, expected = reference
    kept = kept_graph(model, batch, "original")
    product = HessianProduct(model, trainable(model), [batch], WEIGHTS, kept=kept)
    assert relative_error(product(vector), expected) < 1e-12
    assert product.graph_bytes == kept.bytes > 0


def test_micro_batches_are_the_whole_step(model, batch, reference):
    vector, expected = reference
    pieces = [Batch(*parts) for parts in zip(*(each.tensor_split(4) for each in batch[:3]), strict=True)]
    product = HessianProduct(model, trainable(model), hessian_chunks(pieces, None, None), WEIGHTS)
    assert relative_error(product(vector), expected) < 1e-12


def test_finite_difference(model, batch, reference):
    vector, expected = reference
    before = [parameter.detach().clone() for parameter in trainable(model)]
    chunks = hessian_chunks([batch], None, 2)
    product = HessianProduct(model, trainable(model), chunks, WEIGHTS, method="finite_difference")
    assert relative_error(product(vector), expected) < 1e-7
    assert relative_error(product(1e6 * vector), 1e6 * expected) < 1e-7  # the step follows the vector's length
    assert product(0 * vector).eq(0).all()
    for parameter, value in zip(trainable(model), before, strict=True):
        assert torch.equal(parameter, value)


def test_finite_difference_in_float32(batch, reference):
    vector, expected = reference
    model = prompted.prompted_clip(torch.float32)
    chunks = [batch._replace(pixel_values=batch.pixel_values.float())]
    product = HessianProduct(model, trainable(model), chunks, WEIGHTS.float(), method="finite_difference")
    assert relative_error(product(vector.float()).double(), expected) < 2e-2
    exact = HessianProduct(model, trainable(model), chunks, WEIGHTS.float())
    assert relative_error(exact(vector.float()).double(), expected) < 1e-4


def test_task_without_weight_is_left_out(model, batch, reference):
    """Also where its images are infinite: 0 times NaN would spoil all products."""
    weights, vector = WEIGHTS * torch.tensor([1, 0, 1]), reference[0]
    broken = batch.pixel_values.clone()
    broken[batch.task_ids == 1] = torch.inf
    products = [
        HessianProduct(model, trainable(model), [batch._replace(pixel_values=pixels)], weights)(vector)
        for pixels in (batch.pixel_values, broken)
    ]
    assert products[0].isfinite().all() and products[0].norm() > 0
    assert torch.equal(*products)


class TestChunks:
    def batches(self):
        task_ids = torch.tensor([0, 1, 0, 2, 1, 0]), torch.tensor([2, 0, 1, 1, 1])
        labels = torch.arange(6), torch.arange(6, 11)
        return [Batch(each[:, None].float(), tasks, each) for tasks, each in zip(task_ids, labels, strict=True)]

    def labels(self, chunks):
        return [chunk.labels.tolist() for chunk in chunks]

    def test_as_they_are(self):
        assert self.labels(hessian_chunks(self.batches(), None, None)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]

    def test_images_of_every_task_spread_over_the_step(self):
        # Task 0 has the images 0, 2, 5, 7 (the 1st and 3rd), task 1 has 1, 4, 8, 9, 10 (the 1st and 4th), task 2 3, 6.
        assert self.labels(hessian_chunks(self.batches(), 2, None)) == [[0, 1, 3, 5, 6, 9]]
        assert self.labels(hessian_chunks(self.batches(), 1, None)) == [[0, 1, 3]]

    def test_the_same_images_however_the_step_is_cut(self):
        whole = Batch(*(torch.cat(parts) for parts in zip(*(each[:3] for each in self.batches()), strict=True)))
        for size in (1, 2, 3, 9):
            one, two = (hessian_chunks(batches, size, None) for batches in ([whole], self.batches()))
            assert torch.cat([c.labels for c in one]).tolist() == torch.cat([c.labels for c in two]).tolist()

    def test_pieces_of_one_task(self):
        chunks = hessian_chunks(self.batches(), None, 2)
        assert self.labels(chunks) == [[0, 2], [5, 7], [1, 4], [8, 9], [10], [3, 6]]
        assert all(len(chunk.task_ids.unique()) == 1 for chunk in chunks)
        assert [chunk.pixel_values[:, 0].tolist() for chunk in chunks] == self.labels(chunks)


class TestMemory:
    def test_graph_memory_counts_each_storage_once(self):
        x = torch.randn(1000, requires_grad=True)
        with GraphMemory() as memory:
            y = x.exp()  # keeps y
            z = y.sin() + y.cos()  # both keep y
        assert memory.bytes == 4000
        torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0], (y.cos() - y.sin()) * y)

    def test_graph_memory_counts_a_storage_in_the_place_of_a_freed_one(self):
        x = torch.randn(1000, requires_grad=True)
        with GraphMemory() as memory:
            for _ in range(20):
                x.exp()  # keeps its result, and is dropped
        assert memory.bytes == 20 * 4000

    def test_graph_is_freed_with_the_product(self, model, batch):
        """A pack hook that kept a tensor with its own graph would make a cycle that nothing frees."""

        def tensors():
            gc.collect()
            return sum(1 for each in gc.get_objects() if type(each) is torch.Tensor)

        kept_graph(model, batch, "original")  # fills the caches of the frozen model
        before = tensors()
        kept = kept_graph(model, batch, "original")
        assert tensors() > before
        del kept
        assert tensors() == before

    def test_chunks_bound_it_and_a_finite_difference_holds_a_plain_graph(self, model, batch, reference):
        held = []
        for chunk_size, method in ((None, "exact"), (3, "exact"), (1, "exact"), (None, "finite_difference")):
            chunks = hessian_chunks([batch], None, chunk_size)
            product = HessianProduct(model, trainable(model), chunks, WEIGHTS, method)
            product(reference[0])
            held.append(product.graph_bytes)
        whole, by_task, by_image, plain = held
        assert by_task < 0.6 * whole  # three tasks of unequal numbers of classes
        assert by_image < by_task
        assert 0 < plain < 0.7 * whole


class Operators(TorchDispatchMode):
    """Names and dtypes of the operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()
        self.product_dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.add(name)
        if name in ("mm", "addmm", "bmm"):
            self.product_dtypes |= {each.dtype for each in args if isinstance(each, torch.Tensor)}
        return function(*args, **(kwargs or {}))

    @property
    def fused(self):
        return any("flash" in name or "efficient" in name for name in self.names)


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_kernels_and_precision(batch, reference, method):
    """Float32 under any autocast; the fused kernels only where no second derivative is needed."""
    model = prompted.prompted_clip(torch.float32)
    chunks = [batch._replace(pixel_values=batch.pixel_values.float())]
    with Operators() as operators, torch.autocast("cpu", torch.bfloat16):
        HessianProduct(model, trainable(model), chunks, WEIGHTS.float(), method)(reference[0].float())
    assert operators.fused == (method == "finite_difference")
    assert operators.product_dtypes == {torch.float32}
