"""What is kept between calls is used again only where it is still true."""

from __future__ import annotations

import copy
from itertools import pairwise

import prompted
import torch
from torch import nn
from torch.func import functional_call

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
    modes = {precision_mode("cpu")}
    with torch.autocast("cpu", torch.bfloat16):
        modes.add(precision_mode("cpu"))
    with torch.inference_mode():
        modes.add(precision_mode("cpu"))
    with twice_differentiable("cpu"):
        modes.add(precision_mode("cpu"))
    assert len(modes) == 4
    module, cache = nn.Linear(3, 2), Cache()
    key = CacheKey([module])
    made = [cache.get(mode, key, object) for mode in (*modes, *modes)]
    assert len(set(map(id, made))) == 4
    assert copy.deepcopy(cache).get(next(iter(modes)), key, object) not in made


def test_a_tensor_at_a_freed_address_is_another_one():
    class Features(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.class_embeds()

    model = prompted.prompted_clip()
    name, shared = next((n, p) for n, p in model.named_parameters() if n.endswith("text_shared"))
    others = {n: p.detach() for n, p in model.named_parameters() if n != name}
    addresses, features = [], []
    for _ in range(20):
        value = torch.randn_like(shared).detach()  # freed at the end of the round
        addresses.append(value.data_ptr())
        named = {f"model.{n}": each for n, each in {**others, name: value}.items()}
        features.append(functional_call(Features(model), named, ()))
        del value, named
    assert len(set(addresses)) < len(addresses), "no address was used twice, so that nothing is tested"
    assert all(not torch.equal(one, other) for one, other in pairwise(features))
