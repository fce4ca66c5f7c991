"""What is kept between calls is used again only where it is still true."""

from __future__ import annotations

from itertools import pairwise

import prompted
import torch
from jscpt_peft.model.fingerprint import Fingerprint
from torch import nn
from torch.func import functional_call


def test_same_until_something_changes():
    module = nn.Linear(3, 2)
    first = Fingerprint(module)
    assert Fingerprint(module) == first and hash(Fingerprint(module)) == hash(first)
    with torch.no_grad():
        module.bias.add_(1)
    second = Fingerprint(module)
    assert second != first
    with torch.autocast("cpu", torch.bfloat16):
        assert Fingerprint(module) != second
    with torch.inference_mode():
        assert Fingerprint(module) != second
    module.weight = nn.Parameter(module.weight.detach())  # the same memory, another tensor
    assert Fingerprint(module) != second
    assert Fingerprint(module) != Fingerprint(nn.Linear(3, 2))


def test_a_tensor_at_a_freed_address_is_another_one():
    class Features(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.class_embeds()

    model = prompted.prompted_clip()
    name, shared = next((n, p) for n, p in model.named_parameters() if "text_model" in n and n.endswith("shared"))
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
