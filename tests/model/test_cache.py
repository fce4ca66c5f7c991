"""What is kept between calls is used again only where it is still true."""

from __future__ import annotations

import copy
from itertools import combinations

import oracles
import prompted
import torch
from torch import nn

from jscpt_peft.model.backbones.double_backward import precision_mode, twice_differentiable
from jscpt_peft.model.cache import Cache, CacheKey


def test_same_until_something_changes():
    module = nn.Linear(3, 2)
    first = CacheKey([module])
    assert CacheKey([module]) == first and hash(CacheKey([module])) == hash(first)
    with torch.no_grad():
        module.bias.add_(1)
    second = CacheKey([module])
    assert second != first
    module.weight = nn.Parameter(module.weight.detach())  # the same memory, another tensor
    assert CacheKey([module]) != second
    assert CacheKey([module]) != CacheKey([nn.Linear(3, 2)])


def test_results_of_each_precision_are_kept_side_by_side():
    contexts = [torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.inference_mode(),
                twice_differentiable("cpu")]  # fmt: skip
    modes = set()
    for context in contexts:
        with context:
            modes.add(precision_mode("cpu"))
    assert len(modes) == len(contexts)
    module, cache = nn.Linear(3, 2), Cache()
    made = [cache.get(mode, lambda: CacheKey([module]), object) for mode in (*modes, *modes)]
    assert len(set(map(id, made))) == len(contexts)
    assert copy.deepcopy(cache).get(next(iter(modes)), lambda: CacheKey([module]), object) not in made


def test_a_tensor_at_a_freed_address_is_another_one():
    module, keys = nn.Linear(64, 64), []
    for _ in range(20):
        module.weight = None  # frees the one before
        module.weight = nn.Parameter(torch.randn(64, 64))
        keys.append(CacheKey([module]))
    assert len({hash(key) for key in keys}) < len(keys), "no address was used twice, so that nothing is tested"
    assert all(one != other for one, other in combinations(keys, 2))


# ---- class features -------------------------------------------------------------------------------------------------


def test_class_features_are_kept_while_nothing_changes(model, batch):
    pixels, task_ids, labels = batch
    with torch.no_grad():
        kept = model.class_embeds()
        assert model.class_embeds() is kept
        others = model.task_parameters()
        others["text"] = others["text"] + torch.randn_like(others["text"])  # not the parameters' own values
        assert not torch.allclose(model.classify(pixels, task_ids, task_parameters=others).class_embeds, kept)
        model.task_adapter.prompts.text_task.add_(0.1)
        assert model.class_embeds() is not kept
    assert model.class_embeds().requires_grad
    with torch.inference_mode():
        model.classify(pixels, task_ids)
    model.classify(pixels, task_ids, labels).loss.backward()  # what inference mode has kept does not reach it


def test_texts_without_prompts_are_encoded_once(monkeypatch):
    """Their class features are constants, in training too."""
    model = prompted.prompted_clip(towers="vision")
    passes, pooled = [], model.backbone.text.pooled
    monkeypatch.setattr(model.backbone.text, "pooled", lambda *arguments: passes.append(1) or pooled(*arguments))
    kept = model.class_embeds()
    for _ in range(2):
        output = model.classify(*prompted.batch(model), present_tasks_only=True)
        assert output.class_embeds is kept and not kept.requires_grad
        output.loss.backward()
    assert len(passes) == len(prompted.TASKS)  # one per task, the first time


def test_start_token_is_kept_until_the_base_changes(model):
    before, tower = model.class_embeds(), model.backbone.text
    assert tower._start(oracles.TINY_SOS) is tower._start(oracles.TINY_SOS)
    with torch.no_grad():
        tower.base_layer.encoder.layers[0].self_attn.v_proj.weight.mul_(1.5)
    changed, ids = model.class_embeds(), prompted.class_token_ids()["photo"]
    assert (changed - before).norm() > 1e-3 * before.norm()
    plain = prompted.PlainClip(model.get_base_model())
    reference = oracles.text_features(plain, model.task_parameters()["text"][0], ids)
    torch.testing.assert_close(changed[0, : len(ids)], reference, atol=1e-10, rtol=1e-10)
