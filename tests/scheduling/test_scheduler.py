from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from jscpt_peft.scheduling import TaskPromptScheduler

EFFECT = torch.tensor([0.9, 0.6, 0.75])
AFFINITY = torch.tensor([[0.0, 0.5, -0.2], [1.0, 0.0, 0.3], [-1.0, 0.1, 0.0]])
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def brute_force(alpha, beta, effect, affinity, present, direction, normalization, prompts, tasks) -> list[float]:
    """Eq. 6 for Python numbers, one task at a time."""
    here = [i for i, p in enumerate(present) if p]
    weights = [0.0] * len(present)
    for i in here:
        others = [j for j in here if j != i]
        towards = [(affinity[j][i] if direction == "incoming" else affinity[i][j]) for j in others]
        task = sigmoid(beta[i] * sum(towards) / len(towards)) if tasks and others else 1.0
        weights[i] = (sigmoid(alpha[i] * effect[i]) if prompts else 1.0) * task
    if normalization == "sum" and here:
        total = sum(weights)
        weights = [w * len(here) / total for w in weights]
    return weights


def set_omega(scheduler: TaskPromptScheduler, alpha: list[float], beta: list[float]) -> None:
    """α and β of either parameterization, through what a checkpoint would hold."""
    raw = {"alpha": torch.tensor(alpha), "beta": torch.tensor(beta)}
    if "alpha" not in scheduler.state_dict():
        raw = {f"parametrizations.{k}.original": v.expm1().log() for k, v in raw.items()}
    scheduler.load_state_dict(raw)
    assert_close(scheduler.alpha.detach(), torch.tensor(alpha))


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("normalization", ["sum", "none"])
@pytest.mark.parametrize("direction", ["incoming", "outgoing"])
@pytest.mark.parametrize("parameterization", ["unconstrained", "softplus"])
def test_equation_6_for_every_set_of_tasks(switches, normalization, direction, parameterization):
    prompts, tasks = switches
    alpha, beta = [1.5, 0.3, 2.0], [0.7, 4.0, 1.1]
    scheduler = TaskPromptScheduler(3, direction, normalization, parameterization, prompts, tasks)
    set_omega(scheduler, alpha, beta)
    for present in itertools.product([True, False], repeat=3):
        weights = scheduler(EFFECT, AFFINITY, torch.tensor(present))
        expected = brute_force(
            alpha, beta, EFFECT.tolist(), AFFINITY.tolist(), present, direction, normalization, prompts, tasks
        )
        assert_close(weights, torch.tensor(expected))
    assert_close(scheduler(EFFECT, AFFINITY), scheduler(EFFECT, AFFINITY, torch.ones(3, dtype=torch.bool)))


def test_the_scale_of_the_paper_and_ours_at_the_start():
    """Row 7 of the design: 0.34 as printed for neutral tasks, 1 normalised."""
    neutral = torch.full((3,), sigmoid(1))
    literal = TaskPromptScheduler(3, weight_normalization="none")(neutral, torch.zeros(3, 3))
    assert_close(literal, torch.full((3,), 0.5 * sigmoid(sigmoid(1))))
    assert_close(TaskPromptScheduler(3)(neutral, torch.zeros(3, 3)), torch.ones(3))


def test_incoming_affinity_of_a_task_is_its_column():
    """Sources 1 and 2 help task 0, which helps nobody: incoming favours task 0, outgoing disfavours it."""
    affinity = torch.tensor([[0.0, -1.0, -1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    incoming = TaskPromptScheduler(3, prompt_scheduling=False)(EFFECT, affinity)
    outgoing = TaskPromptScheduler(3, prompt_scheduling=False, affinity_direction="outgoing")(EFFECT, affinity)
    assert incoming.argmax() == 0 and outgoing.argmin() == 0


def test_without_is_a_factor_of_one():
    without_both = TaskPromptScheduler(49, prompt_scheduling=False, task_scheduling=False)
    assert torch.equal(without_both(torch.rand(49), torch.rand(49, 49)), torch.ones(49))
    without_prompts = TaskPromptScheduler(3, prompt_scheduling=False, weight_normalization="none")
    assert_close(without_prompts(EFFECT, torch.zeros(3, 3)), torch.full((3,), 0.5))


def test_one_task_has_no_affinity_factor_and_a_zero_gradient_has_the_neutral_one():
    one = TaskPromptScheduler(1, weight_normalization="none")(EFFECT[:1], torch.zeros(1, 1))
    assert_close(one, torch.tensor([sigmoid(0.9)]))
    affinity = AFFINITY.clone()
    affinity[1], affinity[:, 1] = 0, 0  # what Eq. 5 gives for a zero gradient
    weights = TaskPromptScheduler(3, weight_normalization="none")(EFFECT, affinity)
    assert_close(weights[1], torch.tensor(sigmoid(0.6) * 0.5))


@pytest.mark.parametrize("parameterization", ["unconstrained", "softplus"])
def test_omega_starts_at_one(parameterization):
    scheduler = TaskPromptScheduler(3, parameterization=parameterization)
    assert_close(scheduler.alpha.detach(), torch.ones(3))
    assert_close(scheduler.beta.detach(), torch.ones(3))
    assert sum(p.numel() for p in scheduler.parameters()) == 2 * 3


def test_softplus_keeps_omega_positive():
    scheduler = TaskPromptScheduler(3, parameterization="softplus")
    optimizer = torch.optim.SGD(scheduler.parameters(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        (scheduler.alpha.sum() + scheduler.beta.sum()).backward()
        optimizer.step()
    assert (scheduler.alpha > 0).all() and (scheduler.beta > 0).all()
    assert (scheduler.alpha < 0.1).all()


@pytest.mark.parametrize("options", [{}, {"weight_normalization": "none"}, {"affinity_direction": "outgoing"}])
def test_an_absent_tasks_nan_reaches_neither_weights_nor_gradients(options):
    present = torch.tensor([True, False, True])
    effect, affinity = EFFECT.clone(), AFFINITY.clone()
    effect[1], affinity[1], affinity[:, 1] = torch.nan, torch.nan, torch.nan
    clean, poisoned = TaskPromptScheduler(3, **options), TaskPromptScheduler(3, **options)
    expected, weights = clean(EFFECT, AFFINITY, present), poisoned(effect, affinity, present)
    assert torch.equal(weights, expected) and weights[1] == 0

    incoming = torch.tensor([1.0, torch.nan, -2.0])  # an absent task's p·g_i is not a number either
    gradients = torch.autograd.grad(weights, list(poisoned.parameters()), incoming)
    expected = torch.autograd.grad(expected, list(clean.parameters()), torch.tensor([1.0, 0.0, -2.0]))
    for gradient, clean_gradient in zip(gradients, expected, strict=True):
        assert_close(gradient, clean_gradient)
        assert gradient[1] == 0 and gradient[0] != 0


def test_no_task_at_all():
    scheduler = TaskPromptScheduler(3)
    weights = scheduler(EFFECT * torch.nan, AFFINITY * torch.nan, torch.zeros(3, dtype=torch.bool))
    assert weights.eq(0).all()
    assert all(g.eq(0).all() for g in torch.autograd.grad(weights.sum(), list(scheduler.parameters())))


def test_effect_and_affinity_are_constants():
    effect, affinity = EFFECT.clone().requires_grad_(), AFFINITY.clone().requires_grad_()
    scheduler = TaskPromptScheduler(3)
    weights = scheduler(effect, affinity)
    gradients = torch.autograd.grad(weights[0], [effect, affinity, scheduler.alpha, scheduler.beta], allow_unused=True)
    assert gradients[0] is None and gradients[1] is None
    assert gradients[2][0] > 0


@pytest.mark.parametrize("parameterization", ["unconstrained", "softplus"])
@pytest.mark.parametrize("normalization", ["sum", "none"])
def test_gradients_are_those_of_finite_differences(parameterization, normalization):
    scheduler = TaskPromptScheduler(3, parameterization=parameterization, weight_normalization=normalization).double()
    present = torch.tensor([True, True, False])
    for mask in (None, present):

        def weights(*parameters, mask=mask):
            named = dict(zip(dict(scheduler.named_parameters()), parameters, strict=True))
            arguments = (EFFECT.double(), AFFINITY.double(), mask)
            return torch.func.functional_call(scheduler, named, arguments)

        assert torch.autograd.gradcheck(weights, tuple(scheduler.parameters()))


def test_extreme_omega_gives_finite_weights():
    scheduler = TaskPromptScheduler(3)
    set_omega(scheduler, [-1e4] * 3, [1e4] * 3)
    assert scheduler(EFFECT, AFFINITY).isfinite().all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        TaskPromptScheduler(0)
    with pytest.raises(
        ValueError, match=r"`affinity_direction` must be .* got 'incomming'. Did you mean 'incoming'\?"
    ):
        TaskPromptScheduler(2, affinity_direction="incomming")
    with pytest.raises(ValueError, match=r"`weight_normalization` must be .* got 'mean'"):
        TaskPromptScheduler(2, weight_normalization="mean")
    with pytest.raises(ValueError, match=r"`parameterization` .* Did you mean 'softplus'\?"):
        TaskPromptScheduler(2, parameterization="soft-plus")
    scheduler = TaskPromptScheduler(2)
    with pytest.raises(ValueError, match=r"`effect` must have the shape \(2,\) for 2 tasks, got \(3,\)"):
        scheduler(EFFECT, AFFINITY)
    with pytest.raises(ValueError, match=r"`affinity` must have the shape \(2, 2\)"):
        scheduler(EFFECT[:2], AFFINITY)
    with pytest.raises(ValueError, match=r"`present` must have the shape \(2,\)"):
        scheduler(EFFECT[:2], AFFINITY[:2, :2], torch.tensor([True]))
    with pytest.raises(ValueError, match=r"`present` must be a bool tensor, got torch.int64"):
        scheduler(EFFECT[:2], AFFINITY[:2, :2], torch.tensor([1, 0]))
