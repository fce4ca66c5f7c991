from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from jscpt_peft.scheduling import affinity_from_gramian, gradient_cosine, inter_task_affinity

KINDS = ("clipped", "cosine", "unclipped")


def gradients(tasks: int = 4, size: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0])[:tasks, None]
    return scale * torch.randn(tasks, size, dtype=torch.float64, generator=generator)


def test_equation_5_by_hand():
    g = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-8.0, 4.0]])
    unclipped = torch.tensor([[0.0, 1.0, -0.2], [0.5, 0.0, -0.05], [-4.0, -2.0, 0.0]])
    assert_close(inter_task_affinity(g, kind="unclipped"), unclipped)
    assert_close(inter_task_affinity(g), unclipped.clamp(-1, 1))
    root = 0.5**0.5
    cosine = torch.tensor([[0, root, -(0.8**0.5)], [root, 0, -(0.1**0.5)], [-(0.8**0.5), -(0.1**0.5), 0]])
    assert_close(inter_task_affinity(g, kind="cosine"), cosine)


@pytest.mark.parametrize("kind", KINDS)
def test_brute_force(kind):
    g = gradients()
    affinity = inter_task_affinity(g, kind)
    for i in range(4):
        for j in range(4):
            product, source, target = g[i] @ g[j], g[i].norm(), g[j].norm()
            expected = {
                "clipped": max(-1.0, min(1.0, (product / target**2).item())),
                "unclipped": (product / target**2).item(),
                "cosine": (product / (source * target)).item(),
            }[kind]
            assert affinity[i, j].item() == pytest.approx(0 if i == j else expected, abs=1e-9)


def test_what_the_paper_says_of_it():
    """Asymmetric, zero diagonal, in [-1, 1] by clipping only."""
    unclipped, clipped = inter_task_affinity(gradients(), "unclipped"), inter_task_affinity(gradients())
    assert unclipped.abs().max() > 1 and clipped.abs().max() <= 1
    assert not torch.allclose(clipped, clipped.T)
    assert clipped.diagonal().eq(0).all()


def test_a_step_on_the_source_lowers_the_targets_loss_by_its_affinity():
    """The meaning of Eq. 5: a small step on g_i changes loss j by A[i, j] times what a step on g_j would."""
    g, step = gradients(), 1e-3
    change = torch.stack([torch.stack([-(g[j] * step * g[i]).sum() for j in range(4)]) for i in range(4)])
    expected = change / change.diagonal()
    expected.fill_diagonal_(0)
    assert_close(inter_task_affinity(g, "unclipped"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gramian_and_gradients_agree(kind):
    g = gradients()
    assert torch.equal(affinity_from_gramian(g @ g.T, kind), inter_task_affinity(g, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_gradients_have_no_affinity(kind):
    g = gradients()
    g[1] = 0
    affinity = inter_task_affinity(g, kind)
    assert affinity[1].eq(0).all() and affinity[:, 1].eq(0).all()
    assert affinity.isfinite().all() and affinity[0, 2] != 0


@pytest.mark.parametrize("kind", KINDS)
def test_nan_gradients_of_an_absent_task_stay_in_its_row_and_column(kind):
    g = gradients()
    expected = inter_task_affinity(g, kind)
    g[2] = torch.nan
    affinity, rest = inter_task_affinity(g, kind), torch.tensor([0, 1, 3])
    assert_close(affinity[rest][:, rest], expected[rest][:, rest])
    assert affinity[2, [0, 1, 3]].isnan().all() and affinity[2, 2] == 0


def test_gradient_cosine():
    g = gradients()
    expected = torch.nn.functional.normalize(g, dim=1)
    assert_close(gradient_cosine(g @ g.T), expected @ expected.T, rtol=0, atol=1e-9)
    g[0] = 0
    cosine = gradient_cosine(g @ g.T)
    assert cosine[0].eq(0).all() and cosine[1, 1].item() == pytest.approx(1)


def test_half_precision_gradients_are_multiplied_in_float32():
    g = gradients().bfloat16()
    assert_close(inter_task_affinity(g), inter_task_affinity(g.float()))
    assert inter_task_affinity(g).dtype == torch.float32


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`kind` must be one of .* got 'cosin'. Did you mean 'cosine'\?"):
        inter_task_affinity(gradients(), kind="cosin")
    with pytest.raises(ValueError, match=r"`gradients` must be \[tasks, parameters\], got the shape \(2, 3, 4\)"):
        inter_task_affinity(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"`gramian` must be \[tasks, tasks\], got the shape \(2, 3\)"):
        affinity_from_gramian(torch.ones(2, 3))
