"""The oracles themselves, against transformers' own CLIP and against closed forms (float64)."""

from __future__ import annotations

import pytest
import torch
from oracles import (
    TINY_EOS,
    TINY_SOS,
    dense_hessian,
    dense_hypergradient,
    image_features,
    intervention,
    task_loss,
    text_features,
    tiny_clip,
)
from torch.testing import assert_close

EXACT = {"rtol": 1e-12, "atol": 1e-12}
TEXTS = [[TINY_SOS, 5, 6, TINY_EOS], [TINY_SOS, 9, TINY_EOS], [TINY_SOS, 1, 2, 3, 4, 5, TINY_EOS]]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def padded(texts: list[list[int]], length: int, pad: int) -> torch.Tensor:
    return torch.tensor([row + [pad] * (length - len(row)) for row in texts])


def test_without_prompts_images_are_those_of_clip():
    clip, pixels = tiny_clip(), normal(3, 3, 32, 32)
    assert_close(
        image_features(clip, normal(1, 0, 32), pixels), clip.get_image_features(pixels).pooler_output, **EXACT
    )


@pytest.mark.parametrize("eos_token_id", [2, TINY_EOS])
@pytest.mark.parametrize(("length", "pad"), [(7, 0), (77, TINY_EOS)])
def test_without_prompts_texts_are_those_of_clip(eos_token_id, length, pad):
    clip = tiny_clip(eos_token_id=eos_token_id)
    expected = clip.get_text_features(padded(TEXTS, length, pad)).pooler_output
    assert_close(text_features(clip, normal(1, 0, 24), TEXTS, length=length), expected, **EXACT)
    assert_close(text_features(clip, normal(2, 0, 24), TEXTS), expected, **EXACT)


def test_the_two_conventions_read_at_different_positions():
    """The largest id stands before the configured EOS (here 7): the conventions differ, with prompts as without."""
    text = [[TINY_SOS, TINY_EOS, 7, 5]]
    for prompts in (normal(2, 0, 24), normal(2, 4, 24)):
        first, largest = (text_features(tiny_clip(eos_token_id=i), prompts, text) for i in (7, 2))
        assert (first - largest).abs().max() > 0.01
    for eos_token_id in (7, 2):
        clip = tiny_clip(eos_token_id=eos_token_id)
        expected = clip.get_text_features(padded(text, 77, 5)).pooler_output
        assert_close(text_features(clip, normal(1, 0, 24), text), expected, **EXACT)


def test_prompts_around_a_name_are_words_of_the_text():
    """Prompts that are the embeddings of words make the texts in which these words stand there."""
    clip = tiny_clip()
    words = clip.text_model.embeddings.token_embedding.weight[[11, 12, 13]]
    around = [[TINY_SOS, 5, -1, 6, TINY_EOS], [TINY_SOS, 9, 7, -1, TINY_EOS]]
    texts = [[TINY_SOS, 11, 5, 12, 13, 6, TINY_EOS], [TINY_SOS, 11, 9, 7, 12, 13, TINY_EOS]]
    expected = text_features(clip, normal(1, 0, 24), texts)
    assert_close(text_features(clip, words[None], around), expected, **EXACT)


def overwrite_inputs(layers: torch.nn.ModuleList, prompts: torch.Tensor) -> list:
    """Hooks on CLIP's own blocks that put `prompts[l]` at positions 1..n of block l >= 1's input."""

    def hook(block: int):
        def replace(_module, arguments):
            states = arguments[0].clone()
            states[:, 1 : 1 + prompts.shape[1]] = prompts[block]
            return (states, *arguments[1:])

        return replace

    return [layers[block].register_forward_pre_hook(hook(block)) for block in range(1, len(prompts))]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompted_images_equal_clip_with_overwritten_inputs(depth):
    clip, pixels, prompts = tiny_clip(), normal(2, 3, 32, 32), normal(depth, 5, 32)
    vision = clip.vision_model
    first = prompts[0].expand(2, -1, -1)
    vision.pre_layrnorm.register_forward_hook(lambda _module, _arguments, x: torch.cat([x[:, :1], first, x[:, 1:]], 1))
    overwrite_inputs(vision.encoder.layers, prompts)
    expected = clip.get_image_features(pixels).pooler_output
    assert_close(image_features(tiny_clip(), prompts, pixels), expected, **EXACT)


def test_intervention_starts_as_the_identity_and_follows_equation_2():
    x, width, hidden = normal(4, 20), 20, 3
    down, bias, up, up_bias = (
        normal(width, hidden),
        normal(hidden, seed=1),
        torch.zeros(hidden, width),
        torch.zeros(20),
    )
    start = (down, bias, up.double(), up_bias.double())
    assert_close(intervention(x, torch.zeros(20).double(), *start, *start), x, **EXACT)

    # A hidden unit with a bias of 40 is linear (gelu(a) = a), which gives Eq. 2 a closed form.
    ones, zeros, linear = (
        normal(width, hidden, seed=2),
        torch.zeros(width).double(),
        torch.full((hidden,), 40.0).double(),
    )
    up = 0.1 * normal(hidden, width, seed=3)
    mask = normal(width, seed=4)
    u = torch.sigmoid(mask) * (0.1 * x)
    inner = u + (u @ ones + 40) @ up
    outer = u + inner + (0.01 * (u + inner) @ ones + 40) @ up
    result = intervention(0.1 * x, mask, ones, linear, up, zeros, 0.01 * ones, linear, up, zeros)
    assert_close(result, outer, **EXACT)


def test_task_loss_is_clips_own_logits_under_cross_entropy():
    clip, pixels, labels = tiny_clip(), normal(4, 3, 32, 32), torch.tensor([0, 2, 1, 2])
    logits = clip(input_ids=padded(TEXTS, 20, TINY_EOS), pixel_values=pixels).logits_per_image
    expected = -logits.log_softmax(dim=-1)[torch.arange(4), labels].mean()
    images, classes = image_features(clip, normal(1, 0, 32), pixels), text_features(clip, normal(1, 0, 24), TEXTS)
    assert_close(task_loss(clip, images, classes, labels), expected, **EXACT)
    assert_close(task_loss(clip, 3 * images, 0.1 * classes, labels), expected, **EXACT)


def test_dense_hessian_and_hypergradient_on_a_quadratic():
    """L = θᵀQθ/2 - θᵀBΩ has θ* = Q⁻¹BΩ, so L_dev = cᵀθ has the gradient BᵀQ⁻¹c."""
    root, b, c, omega = normal(5, 5), normal(5, 2, seed=1), normal(5, seed=2), normal(2, seed=3)
    q = root @ root.T + torch.eye(5).double()

    def lower(theta, omega):
        return theta @ q @ theta / 2 - theta @ b @ omega

    assert_close(dense_hessian(lambda theta: lower(theta, omega), normal(5)), q, **EXACT)
    theta = torch.linalg.solve(q, b @ omega)
    result = dense_hypergradient(lower, lambda theta: c @ theta, theta, omega)
    assert_close(result, b.T @ torch.linalg.solve(q, c), **EXACT)
