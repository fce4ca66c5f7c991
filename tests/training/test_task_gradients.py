"""One backward gives what N backwards give, and sums over batches give what the union gives."""

from __future__ import annotations

import prompted
import pytest
import torch
from small_run import trainable

from jscpt_peft.model.prompts import PromptSource
from jscpt_peft.training.task_gradients import Batch, scheduled_gradient, shared_gramian, task_gradients, task_products

VARIANTS = [{}, {"prompt_depth": 1}, {"intervention_shared": True}, {"num_task_tokens": 0}, {"towers": "text"}]
VARIANTS += [{"intervention": "modular", "num_modules": 3}]
VARIANTS += [{"intervention": "decoupled", "prompts": "projected", "num_task_tokens": 0}]


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def separate_gradients(model, batch):
    """The slow way: a forward and a backward a task, `[N, P]`."""
    rows = []
    for task in range(len(model.task_names)):
        output = model.classify(*batch)
        loss = output.task_losses[task] + (0 if output.penalties is None else output.penalties[task])
        rows.append(flat(torch.autograd.grad(loss, trainable(model), allow_unused=True, materialize_grads=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_one_backward_equals_one_a_task(options):
    """In each task's gradient, in their weighted sum (Eq. 9), and in their products with a vector."""
    model = prompted.prompted_clip(**options)
    batch = prompted.batch(model)
    separate = separate_gradients(model, batch)
    step = task_gradients(model, Batch(*batch))[0].means()
    torch.testing.assert_close(step.losses, model.classify(*batch).task_losses)
    for weights in (*torch.eye(3), torch.tensor([0.3, 1.7, 1.0])):
        scheduled = scheduled_gradient(model.task_parameters(), trainable(model), step.gradients, weights)
        torch.testing.assert_close(flat(scheduled), weights.double() @ separate, atol=1e-12, rtol=1e-10)
    vector = torch.randn(separate.shape[1], dtype=torch.float64)
    products = task_products(model.task_parameters(), trainable(model), step.gradients, vector)
    torch.testing.assert_close(products, separate @ vector, atol=1e-12, rtol=1e-10)


def test_shared_gradients_are_those_of_the_shared_prompts_of_both_towers():
    model = prompted.prompted_clip()
    batch = prompted.batch(model)
    shared = [parameter for name, parameter in model.named_parameters() if name.endswith("_shared")]
    assert len(shared) == 2
    step = task_gradients(model, Batch(*batch))[0].means()
    losses = model.classify(*batch).task_losses
    separate = torch.stack([flat(torch.autograd.grad(loss, shared, retain_graph=True)) for loss in losses])
    source, prompts = model.task_adapter.prompts, model.task_adapter.prompts()
    gradients = {tower: step.gradients[tower] for tower in prompts}
    # By slices, as this source knows how, and by pulling back, as any source does.
    for computed in (
        source.shared_gradients(prompts, gradients),
        PromptSource.shared_gradients(source, prompts, gradients),
    ):
        torch.testing.assert_close(computed, separate, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(shared_gramian(model, step.gradients), separate @ separate.T)


def test_micro_batches_add_up_to_the_union():
    model = prompted.prompted_clip()
    batch = prompted.batch(model, per_task=4)
    union = task_gradients(model, Batch(*batch), "original")[0].means()
    # Uneven in the tasks: pieces of consecutive images hold different tasks in different numbers.
    pieces = zip(*(each.tensor_split(5) for each in batch), strict=True)
    sums = [task_gradients(model, Batch(*piece), "original")[0] for piece in pieces]
    step = sum(sums[1:], sums[0]).means()
    torch.testing.assert_close(step.losses, union.losses)
    torch.testing.assert_close(step.reference_losses, union.reference_losses)
    for name, gradient in union.gradients.items():
        torch.testing.assert_close(step.gradients[name], gradient, atol=1e-12, rtol=1e-10)


def test_absent_task_is_skipped():
    model = prompted.prompted_clip()
    pixels, task_ids, labels = prompted.batch(model)
    here = task_ids != 1
    step = task_gradients(model, Batch(pixels[here], task_ids[here], labels[here]))[0].means()
    assert step.usable.tolist() == [True, False, True]
    assert not step.nonfinite.any()
    assert step.losses.isnan().tolist() == [False, True, False]
    assert all((gradient[1] == 0).all() and gradient[0].abs().sum() > 0 for gradient in step.gradients.values())


def test_task_that_is_not_finite_is_set_aside():
    model = prompted.prompted_clip()
    pixels, task_ids, labels = prompted.batch(model)
    reference = task_gradients(model, Batch(pixels, task_ids, labels))[0].means()
    pixels[task_ids == 2] = torch.inf
    step = task_gradients(model, Batch(pixels, task_ids, labels))[0].means()
    assert step.nonfinite.tolist() == [False, False, True]
    assert step.usable.tolist() == [True, True, False]
    for name, gradient in step.gradients.items():
        assert (gradient[2] == 0).all()
        torch.testing.assert_close(gradient[:2], reference.gradients[name][:2], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", ["original", "complement"])
def test_reference_losses(kind):
    model = prompted.prompted_clip()
    pixels, task_ids, labels = prompted.batch(model)
    step = task_gradients(model, Batch(pixels, task_ids, labels), kind)[0].means()
    output = model.classify(pixels, task_ids)
    masks = torch.sigmoid(model.task_adapter.head.task_parameters()["mask"])[task_ids]
    view = output.image_embeds if kind == "original" else (1 - masks) * output.image_embeds
    for task in range(3):
        chosen, classes = task_ids == task, output.class_embeds[task, : len(list(prompted.TASKS.values())[task])]
        cosine = torch.nn.functional.cosine_similarity(view[chosen][:, None], classes[None], dim=-1)
        loss = torch.nn.functional.cross_entropy(cosine * model.logit_scale.exp(), labels[chosen])
        torch.testing.assert_close(step.reference_losses[task], loss, atol=1e-10, rtol=1e-10)
