"""The fast path computes what concatenation computes: logits, losses and every gradient."""

from __future__ import annotations

import oracles
import prompted
import pytest
import torch

from jscpt_peft.model import class_features
from jscpt_peft.model.backbones.double_backward import twice_differentiable

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

CASES = {
    "full depth": {},
    "depth 1": {"prompt_depth": 1},
    "depth 2 of 3": {"prompt_depth": 2},
    "vision only": {"towers": "vision"},
    "text only": {"towers": "text"},
    "shared tokens only": {"num_task_tokens": 0},
    "task tokens only": {"num_shared_tokens": 0},
    "no selection": {"intervention": "none"},
    "shared selection": {"intervention_shared": True},
    "fixed masks": {"learn_masks": False},
}


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value - reference).norm() / reference.norm().clamp(min=1e-300)).item()


def check_against_oracle(dtype=torch.float64, **options):
    model = prompted.prompted_clip(dtype, **options)
    batch = prompted.batch(model)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    output = model.classify(*batch)
    for task, names in enumerate(prompted.TASKS.values()):  # nothing beyond a task's own classes
        assert torch.isneginf(output.logits[batch[1] == task][:, len(names) :]).all()
        assert (output.class_embeds[task, len(names) :] == 0).all()
    losses, references = output.task_losses, prompted.oracle_losses(model, *batch)
    assert relative_error(losses, references) < TOLERANCE[dtype]
    found, expected = (torch.autograd.grad(each.sum(), list(parameters.values())) for each in (losses, references))
    for name, gradient, reference in zip(parameters, found, expected, strict=True):
        assert reference.norm() > 0, f"{name} takes no part in the loss: the comparison would be empty"
        assert relative_error(gradient, reference) < TOLERANCE[dtype], name


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_concatenation(case):
    check_against_oracle(**CASES[case])


@pytest.mark.parametrize("case", ["full depth", "depth 1"])
def test_in_float32_too(case):
    check_against_oracle(torch.float32, **CASES[case])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("eos_token_id", "depth"), [(2, 1), (2, None), (oracles.TINY_EOS, 1)])
def test_conventions_of_the_base_model(implementation, eos_token_id, depth):
    check_against_oracle(implementation=implementation, eos_token_id=eos_token_id, prompt_depth=depth)


@pytest.mark.parametrize(("depth", "most_texts"), [(1, 99), (None, 99), (1, 0), (None, 0)])
def test_checkpointing_changes_nothing(depth, most_texts, monkeypatch):
    """Nor does a pass of its own for the texts of each task, where they are many."""
    monkeypatch.setattr(class_features, "MOST_TEXTS", most_texts)
    model = prompted.prompted_clip(prompt_depth=depth).train()
    batch, calls = prompted.batch(model), []
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def derivatives():
        """The gradient, and its square's."""
        gradient = torch.autograd.grad(model.classify(*batch).loss, parameters)
        with twice_differentiable("cpu"):
            once = torch.autograd.grad(model.classify(*batch).loss, parameters, create_graph=True)
            return [*gradient, *torch.autograd.grad(sum(each.square().sum() for each in once), parameters)]

    plain = derivatives()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    blocks, passes = model.backbone.vision.blocks, []
    for layer in blocks:
        layer.layer_norm2.register_forward_hook(lambda *_: calls.append(1))
    features = model.backbone.text_features
    monkeypatch.setattr(model.backbone, "text_features", lambda *each: passes.append(1) or features(*each))
    torch.autograd.grad(model.classify(*batch).loss, parameters)
    assert len(calls) == 2 * len(blocks), "every block must run a second time in the backward pass"
    assert len(passes) == (1 if most_texts else 2 * len(prompted.TASKS))
    checkpointed = derivatives()
    rounding = 0 if most_texts else 1e-12  # sums in another order
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, atol=rounding, rtol=rounding)


def test_features_of_a_published_shape_equal_concatenation():
    """Of ViT-L/14, with two of its blocks and random weights."""
    sizes = {"vision_width": 1024, "vision_heads": 16, "text_width": 768, "text_heads": 12, "projection": 768,
             "image_size": 224, "patch_size": 14}  # fmt: skip
    model = prompted.prompted_clip(torch.float32, clip=oracles.tiny_clip(layers=2, dtype=torch.float32, **sizes))
    pixels, task_ids = torch.randn(3, 3, 224, 224), torch.tensor([0, 1, 2])
    with torch.no_grad():
        output, views = model.classify(pixels, task_ids), model.task_parameters()
        plain = prompted.PlainClip(model.get_base_model())
        for task, ids in enumerate(prompted.class_token_ids().values()):
            x = oracles.image_features(plain, views["vision"][task], pixels[task : task + 1])[0]
            z = oracles.text_features(plain, views["text"][task], ids)
            assert relative_error(output.image_embeds[task], x) < 1e-5
            assert relative_error(output.class_embeds[task, : len(ids)], z) < 1e-5
