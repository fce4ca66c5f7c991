"""Weightings beside Eq. 6 against their published formulas, written out for Python numbers, task by task."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch.testing import assert_close

from jscpt_peft.scheduling import (
    FAMO,
    DynamicWeightAverage,
    GradientAggregator,
    GradNorm,
    GramianWeighting,
    StepSignals,
    UncertaintyWeighting,
)

ALL = [True, True, True]
STEPS = 7


def steps(missing=()) -> list[StepSignals]:
    """Two steps an epoch; losses that fall at different rates, and gradients. A task is missing in some steps."""
    generator, made = torch.Generator().manual_seed(4), []
    for step in range(STEPS):
        noise = torch.rand(3, generator=generator, dtype=torch.float64)
        losses = torch.tensor([2.0, 1.0, 0.5]).double() * torch.tensor([0.9, 0.7, 0.99]).double() ** step + 0.1 * noise
        gradients = torch.randn(3, 4, generator=generator, dtype=torch.float64) * torch.tensor([[3.0], [1], [0.2]])
        usable = torch.tensor([True, step not in missing, True])
        made.append(StepSignals(
            step + 1, usable, losses.masked_fill(~usable, torch.nan), gramian=gradients @ gradients.T, epoch=step // 2
        ))  # fmt: skip
    return made


def run(weighting, given=None):
    weighting = weighting.double()
    return torch.stack([weighting(signals) for signals in given or steps()])


def softmax(logits):
    powers = [math.exp(each) for each in logits]
    return [power / sum(powers) for power in powers]


class Adam:
    """torch's own."""

    def __init__(self, rate, decay=0.0):
        self.xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.xi], lr=rate, weight_decay=decay)

    def descend(self, objective):
        self.optimizer.zero_grad()
        objective(self.xi).backward()
        self.optimizer.step()


def test_uncertainty():
    """Kendall et al., Eq. 10: Σ L_i / σ_i² + log σ_i, minimised in log σ_i² too."""
    adam, expected = Adam(0.3), []
    for signals in steps():
        expected.append([1 / math.exp(each) for each in adam.xi.tolist()])
        adam.descend(lambda xi, losses=signals.losses: (losses / xi.exp() + xi.exp().sqrt().log()).sum())
    assert_close(run(UncertaintyWeighting(3, learning_rate=0.3)).tolist(), expected)
    assert expected[0] == [1, 1, 1] and expected[-1][0] < 0.5


def test_gradnorm():
    """Chen et al., Eqs. 1 and 2, with the weights as a softmax."""
    adam, expected, first = Adam(0.3), [], steps()[0].losses

    def objective(xi, signals):
        w, norms = 3 * xi.softmax(0), signals.gramian.diagonal().sqrt()
        ratios = signals.losses / first
        target = (w * norms).mean().detach() * (ratios / ratios.mean()) ** 0.7
        return (w * norms - target).abs().sum()

    for signals in steps():
        expected.append([3 * share for share in softmax(adam.xi.tolist())])
        adam.descend(lambda xi, signals=signals: objective(xi, signals))
    assert_close(run(GradNorm(3, learning_rate=0.3, alpha=0.7)).tolist(), expected)
    assert expected[-1][2] > 2 * expected[-1][0]  # the smallest gradients are weighed up


def test_famo():
    """Liu et al., Algorithm 1, with the next step's losses for those after the step."""
    adam, expected, before = Adam(0.3, decay=0.2), [], None
    for signals in steps():
        losses = signals.losses
        if before is not None:
            fallen = before.log() - losses.log()
            adam.descend(lambda xi, fallen=fallen: xi.softmax(0) @ fallen)
        z = softmax(adam.xi.tolist())
        c = 1 / sum(share / loss for share, loss in zip(z, losses.tolist(), strict=True))
        expected.append([c * share / loss for share, loss in zip(z, losses.tolist(), strict=True)])
        before = losses
    assert_close(run(FAMO(3, learning_rate=0.3, decay=0.2)).tolist(), expected)


def test_dynamic_weight_average():
    """Liu et al., Eq. 7: λ_k = K exp(w_k / T) / Σ exp(w_i / T), w_k = L_k(t-1) / L_k(t-2), L means of epochs."""
    losses = torch.stack([signals.losses for signals in steps()])
    means = [losses[2 * epoch : 2 * epoch + 2].mean(0) for epoch in range(3)]
    expected = [[1.0, 1.0, 1.0]] * 4
    for epoch in (2, 3):
        ratios = (means[epoch - 1] / means[epoch - 2] / 0.5).tolist()
        expected += [[3 * share for share in softmax(ratios)]] * 2
    assert_close(run(DynamicWeightAverage(3, temperature=0.5)).tolist(), expected[:STEPS])


def test_pcgrad_and_imtl_g():
    """Yu et al., Algorithm 1, for two tasks, where the order does not matter; Liu et al., Eq. 3."""
    g = torch.tensor([[1.0, 0.5, 0.0], [-2.0, 0.3, 0.1]], dtype=torch.float64)
    signals = StepSignals(1, torch.tensor([True, True]), torch.ones(2).double(), gramian=g @ g.T)
    projected = [g[i] - (g[i] @ g[j]) / (g[j] @ g[j]) * g[j] for i, j in ((0, 1), (1, 0))]
    assert (g[0] @ g[1]) < 0
    weights = GramianWeighting(GradientAggregator("pcgrad", 2))(signals)
    assert_close(weights @ g, sum(projected), atol=1e-12, rtol=0)
    weights = GramianWeighting(GradientAggregator("imtl_g", 2))(signals)
    projections = [(weights @ g) @ each / each.norm() for each in g]
    assert_close(projections[0], projections[1], atol=1e-12, rtol=0)
    assert_close(weights.sum().item(), 1.0)


MADE = {
    "uw": UncertaintyWeighting,
    "gradnorm": GradNorm,
    "famo": FAMO,
    "dwa": DynamicWeightAverage,
    "gradvac": lambda tasks, *options: GramianWeighting(GradientAggregator("gradvac", tasks), *options),
}
every = pytest.mark.parametrize("name", MADE)


@every
def test_state_goes_through_a_file_that_holds_no_code(name):
    whole, stopped, resumed = (MADE[name](3).double() for _ in range(3))
    expected = run(whole)
    run(stopped, steps()[:3])
    run(resumed, steps()[4:])  # forgotten by what is loaded
    torch.save(stopped.state_dict(), file := io.BytesIO())
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(resumed, steps()[3:]), expected[3:])
    assert not torch.equal(run(MADE[name](3), steps()[3:]), expected[3:])


@every
def test_a_missing_task_has_no_weight_and_weights_stay_finite(name):
    weights = run(MADE[name](3, "sum"), steps(missing=(0, 3, 4)))
    assert_close((weights[:, 1] == 0).tolist(), [True, False, False, True, True, False, False])
    assert_close(weights.abs().sum(1), torch.tensor([2.0, 3, 3, 2, 2, 3, 3]).double())
    none = StepSignals(1, torch.tensor([False] * 3), torch.full((3,), torch.nan), gramian=torch.zeros(3, 3))
    assert torch.equal(MADE[name](3)(none), torch.zeros(3))
