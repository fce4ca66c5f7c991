"""Eq. 5 by hand, by what it means, and where a task has no gradient."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from jscpt_peft.scheduling import affinity_from_gramian, gradient_cosine, inter_task_affinity

KINDS = ("clipped", "cosine", "unclipped")


@pytest.fixture
def gradients():
    """Of four tasks, `[4, 50]`, of very different lengths."""
    return torch.tensor([1.0, 10.0, 0.1, 3.0]).double()[:, None] * torch.randn(4, 50, dtype=torch.float64)


def test_equation_5_by_hand():
    g = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-8.0, 4.0]])
    unclipped = torch.tensor([[0.0, 1.0, -0.2], [0.5, 0.0, -0.05], [-4.0, -2.0, 0.0]])
    assert_close(inter_task_affinity(g, kind="unclipped"), unclipped)
    assert_close(inter_task_affinity(g), unclipped.clamp(-1, 1))
    root = 0.5**0.5
    cosine = torch.tensor([[0, root, -(0.8**0.5)], [root, 0, -(0.1**0.5)], [-(0.8**0.5), -(0.1**0.5), 0]])
    assert_close(inter_task_affinity(g, kind="cosine"), cosine)
    assert_close(gradient_cosine(g @ g.T), cosine + torch.eye(3))


def test_a_step_on_the_source_lowers_the_targets_loss_by_its_affinity(gradients):
    """The meaning of Eq. 5: a small step on g_i changes loss j by A[i, j] times what a step on g_j would."""
    change = torch.stack([-(gradients * 1e-3 * source).sum(1) for source in gradients])
    expected = (change / change.diagonal()).fill_diagonal_(0)
    assert_close(inter_task_affinity(gradients, "unclipped"), expected)
    assert expected.abs().max() > 1  # which the paper rules out, and clipping alone prevents
    assert_close(inter_task_affinity(gradients), expected.clamp(-1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_and_missing_gradients(gradients, kind):
    expected, others = inter_task_affinity(gradients, kind), torch.tensor([0, 2, 3])
    gradients[1] = 0
    zero = inter_task_affinity(gradients, kind)
    gradients[1] = torch.nan  # the task is absent: its row and column are unknown, and no other's
    absent = inter_task_affinity(gradients, kind)
    for affinity in (zero, absent):
        assert_close(affinity[others][:, others], expected[others][:, others])
    assert zero[1].eq(0).all() and zero[:, 1].eq(0).all()
    assert absent[1, others].isnan().all() and absent[1, 1] == 0


def test_half_precision_gradients_are_multiplied_in_float32(gradients):
    half = gradients.bfloat16()
    assert_close(inter_task_affinity(half), inter_task_affinity(half.float()))
    assert inter_task_affinity(half).dtype == torch.float32


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`kind` must be one of .* got 'cosin'. Did you mean 'cosine'\?"):
        inter_task_affinity(torch.ones(2, 3), kind="cosin")
    with pytest.raises(ValueError, match=r"`gradients` must be \[tasks, parameters\], got the shape \(2, 3, 4\)"):
        inter_task_affinity(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"`gramian` must be \[tasks, tasks\], got the shape \(2, 3\)"):
        affinity_from_gramian(torch.ones(2, 3))
