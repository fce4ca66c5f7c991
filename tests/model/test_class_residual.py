"""Class residuals against z / ‖z‖ + shared[name] + own[task, label] written out."""

from __future__ import annotations

import oracles
import prompted
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn.functional import cosine_similarity, normalize

from jscpt_peft import JSCPTConfig
from jscpt_peft.serving.export import TaskClassifier
from jscpt_peft.training.task_gradients import Batch, shared_gramian, task_gradients

KINDS = ("task", "shared", "both")
# `cat` is known to two of the tasks; five classes are more than any task has.
BIRDS = {
    "name": "birds",
    "class_names": ["owl", "cat", "ant", "emu", "jay"],
    "class_token_ids": [[oracles.TINY_SOS, word, oracles.TINY_EOS] for word in range(5, 10)],
}
EXACT = {"atol": 1e-10, "rtol": 0}


def adapted(kind: str, **options) -> PeftModel:
    """A prompted CLIP away from its start; all its tasks' classes have residuals that differ."""
    model = prompted.prompted_clip(class_residual=kind, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.task_adapter.class_residual.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def oracle_class(model: PeftModel, task: int, label: int) -> torch.Tensor:
    """z̄ `[D]` of one class by concatenation, from the tensors as they are stored."""
    config, tensors = model.active_jscpt_config, dict(model.task_adapter.class_residual.named_parameters())
    name, (_, names) = list(config.tasks)[task], list(config.tasks.items())[task]
    ids = [config.class_token_ids[name][label]]
    plain = prompted.PlainClip(model.get_base_model())
    z = normalize(oracles.text_features(plain, model.prompt_tokens("text")[task], ids)[0], dim=-1)
    if "shared_rows" in tensors:
        order = list(dict.fromkeys(each for names in config.tasks.values() for each in names))
        rows = tensors["shared_rows"][task] if config.single_task else tensors["shared_rows"]
        z = z + rows[order.index(names[label])]
    return z + tensors["own_rows"][task, label] if "own_rows" in tensors else z


@pytest.mark.parametrize("single_task", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_class_features_and_gradients_are_those_of_the_oracle(kind, single_task):
    model = adapted(kind, single_task=single_task)
    pixels, task_ids, labels = prompted.batch(model)
    output = model.classify(pixels, task_ids, labels)
    losses = []
    for task, names in enumerate(prompted.TASKS.values()):
        classes = torch.stack([oracle_class(model, task, label) for label in range(len(names))])
        torch.testing.assert_close(output.class_embeds[task, : len(names)], classes, **EXACT)
        assert not output.class_embeds[task, len(names) :].any()
        images = output.selected_embeds[task_ids == task]
        cosines = cosine_similarity(images[:, None], classes[None], dim=-1)
        logits = cosines * model.get_base_model().logit_scale.exp()
        losses.append(torch.nn.functional.cross_entropy(logits, labels[task_ids == task]))
    torch.testing.assert_close(output.task_losses, torch.stack(losses), **EXACT)
    parameters = list(model.task_adapter.parameters())
    expected = torch.autograd.grad(torch.stack(losses).sum(), parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(output.task_losses.sum(), parameters), expected, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_one_backward_gives_every_tasks_gradient_and_affinities(kind):
    model = adapted(kind, num_task_tokens=0)
    batch = Batch(*prompted.batch(model))
    sums, _ = task_gradients(model, batch)
    shared, rows = model.task_adapter.shared_prompts(), []
    for task in range(3):
        alone = model.classify(*batch.rows(batch.task_ids == task)).task_losses[task]
        gradients = torch.autograd.grad(alone, shared, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    gramian = shared_gramian(model, sums.means().gradients)
    torch.testing.assert_close(gramian, torch.stack(rows) @ torch.stack(rows).T, atol=1e-10, rtol=1e-10)
    prompts_alone = torch.stack([row[: sum(p.numel() for p in model.task_adapter.prompts.shared())] for row in rows])
    assert torch.allclose(gramian, prompts_alone @ prompts_alone.T) == (kind == "task")


def test_nothing_changes_at_the_start():
    with torch.no_grad():
        logits = [
            prompted.prompted_clip(class_residual=kind).classify(*prompted.batch(adapted("both"))[:2]).logits
            for kind in ("none", "both")
        ]
    torch.testing.assert_close(*logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_added_saved_loaded_and_trained_alone(kind, tmp_path):
    model = adapted(kind)
    batch = prompted.batch(model)[:2]
    before = model.classify(*batch).logits.detach()
    model.add_task(**BIRDS)
    assert torch.equal(model.classify(*batch).logits[:, :4], before)
    model.train_only("birds")
    if kind != "shared":
        with torch.no_grad():
            model.task_adapter.class_residual.rows["own_rows"].add_(0.1)
    expected = model.class_embeds().detach()
    model.train_only(None)
    residuals = model.task_adapter.class_residual()[3].detach()
    known = residuals[1].any() if kind != "task" else True
    assert known and (residuals[0].any() == (kind != "shared"))
    for label in range(5):
        torch.testing.assert_close(expected[3, label], oracle_class(model, 3, label), **EXACT)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    torch.testing.assert_close(loaded.class_embeds(), expected, atol=1e-12, rtol=0)


def test_what_is_exported_has_the_residuals():
    model = adapted("both")
    pixels = prompted.batch(model)[0]
    with torch.no_grad():
        given, expected = TaskClassifier(model.base_model, 1, torch.float64)(pixels), model.classify(pixels, 1)
    torch.testing.assert_close(given, expected.logits[:, :2], **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_any_names_have_the_residuals_of_what_is_known(kind):
    residual = adapted(kind).task_adapter.class_residual
    given = residual.of_names(1, {"cat": 0, "dog": 1}, ["dog", "fox", "unicorn"])
    tensors = dict(residual.named_parameters())
    fox = tensors["shared_rows"][2] if kind != "task" else torch.zeros(20)
    expected = [residual()[1, 1], fox, torch.zeros(20)]
    assert torch.equal(given, torch.stack(expected))


def test_zero_shot_has_none():
    with pytest.raises(ValueError, match="`class_residual` is 'both', but method 'zero_shot' requires 'none'"):
        JSCPTConfig.for_method("zero_shot", tasks=prompted.TASKS, class_residual="both")
    ids = prompted.class_token_ids()
    alone = {"num_shared_tokens": 0, "num_task_tokens": 0, "intervention": "none", "class_residual": "shared"}
    model = get_peft_model(oracles.tiny_clip(), JSCPTConfig(tasks=prompted.TASKS, class_token_ids=ids, **alone))
    assert [tuple(each.shape) for each in model.task_adapter.parameters()] == [(7, 20)]
