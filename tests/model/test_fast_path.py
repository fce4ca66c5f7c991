"""The fast path computes what concatenation computes: logits, losses and every gradient."""

from __future__ import annotations

import oracles
import prompted
import pytest
import torch

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_concatenation(case, dtype):
    check_against_oracle(dtype, **CASES[case])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("eos_token_id", [2, oracles.TINY_EOS])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("depth", [1, None])
def test_conventions_of_the_base_model(implementation, eos_token_id, padded, depth):
    check_against_oracle(
        torch.float64, padded=padded, implementation=implementation, eos_token_id=eos_token_id, prompt_depth=depth
    )


def check_against_oracle(dtype, padded=True, **options):
    model = prompted.prompted_clip(dtype, **options)
    pixels, task_ids, labels = prompted.batch(model)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert parameters

    output = model.classify(pixels, task_ids, labels)
    gradients = torch.autograd.grad(output.task_losses.sum(), list(parameters.values()))
    losses = prompted.oracle_losses(model, pixels, task_ids, labels, padded)
    references = torch.autograd.grad(losses.sum(), list(parameters.values()))

    assert relative_error(output.task_losses, losses) < TOLERANCE[dtype]
    for name, gradient, reference in zip(parameters, gradients, references, strict=True):
        assert reference.norm() > 0, f"{name} takes no part in the loss: the comparison would be empty"
        assert relative_error(gradient, reference) < TOLERANCE[dtype], name


def test_logits_and_features_equal_concatenation():
    model = prompted.prompted_clip(prompt_depth=2)
    pixels, task_ids, _ = prompted.batch(model)
    plain = prompted.PlainClip(model.get_base_model())
    output, views = model.classify(pixels, task_ids), model.task_parameters()
    for task, ids in enumerate(model.active_jscpt_config.class_token_ids.values()):
        chosen = task_ids == task
        x = oracles.image_features(plain, views["vision"][task], pixels[chosen])
        z = oracles.text_features(plain, views["text"][task], ids)
        torch.testing.assert_close(output.image_embeds[chosen], x, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(output.class_embeds[task, : len(ids)], z, atol=1e-10, rtol=1e-10)
        cosine = torch.nn.functional.cosine_similarity(output.selected_embeds[chosen][:, None], z[None], dim=-1)
        torch.testing.assert_close(
            output.logits[chosen][:, : len(ids)], cosine * plain.logit_scale.exp(), atol=1e-10, rtol=1e-10
        )
        assert torch.isneginf(output.logits[chosen][:, len(ids) :]).all()
        assert (output.class_embeds[task, len(ids) :] == 0).all()


@pytest.mark.parametrize("depth", [1, None])
def test_checkpointing_changes_nothing(depth):
    model = prompted.prompted_clip(prompt_depth=depth)
    pixels, task_ids, labels = prompted.batch(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()

    def gradients():
        return torch.autograd.grad(model.classify(pixels, task_ids, labels).loss, parameters)

    plain = gradients()
    calls = []
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    hooks = [
        layer.layer_norm2.register_forward_hook(lambda *_: calls.append(1)) for layer in model.backbone.vision.blocks
    ]
    checkpointed = gradients()
    for hook in hooks:
        hook.remove()
    assert len(calls) == 2 * len(hooks), "every block must run a second time in the backward pass"
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_bfloat16_base_is_close_to_float32():
    single, half = prompted.prompted_clip(torch.float32), prompted.prompted_clip(torch.float32)
    half.get_base_model().to(torch.bfloat16)
    half.load_state_dict(single.state_dict())
    pixels, task_ids, labels = prompted.batch(single)
    reference = single.classify(pixels, task_ids, labels)
    output = half.classify(pixels.bfloat16(), task_ids, labels)
    assert output.logits.dtype == torch.float32
    assert relative_error(output.selected_embeds.float(), reference.selected_embeds) < 0.05
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters() if p.requires_grad)


def test_start_token_is_kept_until_the_base_changes():
    model = prompted.prompted_clip()
    before = model.class_embeds()
    tower = model.backbone.text
    assert tower._start(oracles.TINY_SOS) is tower._start(oracles.TINY_SOS)
    with torch.no_grad():
        tower.base_layer.encoder.layers[0].self_attn.v_proj.weight.mul_(1.5)
    changed = model.class_embeds()
    assert relative_error(changed, before) > 1e-3
    plain = prompted.PlainClip(model.get_base_model())
    ids = model.active_jscpt_config.class_token_ids["photo"]
    reference = oracles.text_features(plain, model.task_parameters()["text"][0], ids)
    torch.testing.assert_close(changed[0, : len(ids)], reference, atol=1e-10, rtol=1e-10)
