"""Eq. 6 against plain Python, its gradients, and what stands in the place of a factor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from jscpt_peft.scheduling import TaskPromptScheduler

EFFECT = torch.tensor([0.9, 0.6, 0.75]).double()
AFFINITY = torch.tensor([[0.0, 0.5, -0.2], [1.0, 0.0, 0.3], [-1.0, 0.1, 0.0]]).double()
FACTOR = torch.tensor([0.2, 1.4, 0.7]).double()
ALPHA, BETA = [1.5, 0.3, 2.0], [0.7, 4.0, 1.1]
SUBSETS = list(itertools.product([True, False], repeat=3))
OPTIONS = [
    {"affinity_direction": direction, "weight_normalization": normalization, "parameterization": parameterization}
    for direction in ("incoming", "outgoing")
    for normalization in ("sum", "none")
    for parameterization in ("unconstrained", "softplus")
]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def scheduler_at(alpha: list[float], beta: list[float], **options) -> TaskPromptScheduler:
    """With α and β of either parameterization, set through what a checkpoint would hold."""
    scheduler = TaskPromptScheduler(len(alpha), **options).double()
    raw = {"alpha": torch.tensor(alpha).double(), "beta": torch.tensor(beta).double()}
    if "alpha" not in scheduler.state_dict():
        raw = {f"parametrizations.{name}.original": value.expm1().log() for name, value in raw.items()}
    scheduler.load_state_dict(raw)
    return scheduler


def equation_6(present, affinity_direction, weight_normalization, prompts, tasks, **_) -> torch.Tensor:
    """For Python numbers, one task at a time."""
    affinity = AFFINITY if affinity_direction == "incoming" else AFFINITY.T
    here = [i for i, p in enumerate(present) if p]
    weights = [0.0] * len(present)
    for i in here:
        towards = [float(affinity[j, i]) for j in here if j != i]
        task = sigmoid(BETA[i] * sum(towards) / len(towards)) if tasks and towards else 1.0
        weights[i] = (sigmoid(ALPHA[i] * float(EFFECT[i])) if prompts else 1.0) * task
    if weight_normalization == "sum" and here:
        weights = [weight * len(here) / sum(weights) for weight in weights]
    return torch.tensor(weights).double()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("tasks", [True, False])
def test_equation_6_for_every_set_of_tasks(options, prompts, tasks):
    """What is known of absent tasks, NaN included, reaches neither weights nor gradients."""
    scheduler = scheduler_at(ALPHA, BETA, **options, prompt_scheduling=prompts, task_scheduling=tasks)
    assert_close(scheduler(EFFECT, AFFINITY), scheduler(EFFECT, AFFINITY, torch.ones(3, dtype=torch.bool)))
    for present in map(torch.tensor, SUBSETS):
        effect = EFFECT.masked_fill(~present, torch.nan)
        affinity = AFFINITY.masked_fill(~torch.outer(present, present), torch.nan)
        weights = scheduler(effect, affinity, present)
        assert_close(weights, equation_6(present.tolist(), **options, prompts=prompts, tasks=tasks))
        if weights.requires_grad:
            products = torch.ones(3).double().masked_fill(~present, torch.nan)
            gradients = torch.autograd.grad(weights, list(scheduler.parameters()), products, materialize_grads=True)
            assert all(each.isfinite().all() and each[~present].eq(0).all() for each in gradients)


def test_effect_and_affinity_are_constants():
    effect, affinity = EFFECT.clone().requires_grad_(), AFFINITY.clone().requires_grad_()
    weights = TaskPromptScheduler(3)(effect, affinity)
    assert torch.autograd.grad(weights[0], [effect, affinity], allow_unused=True) == (None, None)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("present", [None, torch.tensor([True, True, False])], ids=["all", "one absent"])
def test_gradients_are_those_of_finite_differences(options, present):
    scheduler = scheduler_at(ALPHA, BETA, **options)

    def weights(*parameters):
        named = dict(zip(dict(scheduler.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(scheduler, named, (EFFECT, AFFINITY, present))

    assert torch.autograd.gradcheck(weights, tuple(scheduler.parameters()))


def test_extreme_omega():
    assert scheduler_at([-1e4] * 3, [1e4] * 3)(EFFECT, AFFINITY).isfinite().all()
    scheduler = TaskPromptScheduler(3, parameterization="softplus")
    with torch.no_grad():
        for parameter in scheduler.parameters():
            parameter.fill_(-50)
    assert (scheduler.alpha > 0).all() and (scheduler.alpha < 0.1).all()


# ---- another task factor --------------------------------------------------------------------------------------------


def test_a_factor_in_the_place_of_the_affinities():
    prompt, present = torch.sigmoid(EFFECT), torch.tensor([True, False, True])
    scheduler = TaskPromptScheduler(3, weight_normalization="none").double()
    assert_close(scheduler(EFFECT, AFFINITY, None, FACTOR), prompt * FACTOR)
    absent = scheduler(EFFECT, AFFINITY, present, FACTOR.masked_fill(~present, torch.nan))
    assert_close(absent, torch.where(present, prompt * FACTOR, 0))
    weights = TaskPromptScheduler(3)(EFFECT, AFFINITY, None, FACTOR)
    assert_close(weights.double(), prompt * FACTOR * 3 / (prompt * FACTOR).sum())
    alpha, beta = torch.autograd.grad(scheduler(EFFECT, AFFINITY, None, FACTOR)[0], [scheduler.alpha, scheduler.beta],
                                      allow_unused=True)  # fmt: skip
    assert beta is None and alpha[0] != 0


def test_weights_of_both_signs_keep_them_and_stay_bounded():
    """Divided by their sum, which is next to zero here, they would be thousands; zeros stay zeros."""
    signed = torch.tensor([1.0, -0.999, 0.0]).double()
    scheduler = TaskPromptScheduler(3).double()
    assert_close(scheduler(EFFECT, AFFINITY, None, signed / torch.sigmoid(EFFECT)), signed * 3 / 1.999)
    zeros = scheduler(EFFECT, AFFINITY, None, torch.zeros(3))
    assert zeros.eq(0).all()
    assert torch.autograd.grad(zeros.sum(), scheduler.alpha)[0].eq(0).all()


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"num_tasks": 0}, (), "`num_tasks` must be at least 1, got 0"),
        ({"affinity_direction": "incomming"}, (), r"`affinity_direction` .* Did you mean 'incoming'\?"),
        ({"weight_normalization": "mean"}, (), "`weight_normalization` must be .* got 'mean'"),
        ({"parameterization": "soft-plus"}, (), r"`parameterization` .* Did you mean 'softplus'\?"),
        ({}, (EFFECT[:2], AFFINITY), r"`effect` must have the shape \(3,\) for 3 tasks, got \(2,\)"),
        ({}, (EFFECT, AFFINITY[:2]), r"`affinity` must have the shape \(3, 3\)"),
        ({}, (EFFECT, AFFINITY, torch.tensor([True])), r"`present` must have the shape \(3,\)"),
        ({}, (EFFECT, AFFINITY, torch.ones(3)), "`present` must be a bool tensor, got torch.float32"),
        ({}, (EFFECT, AFFINITY, None, FACTOR[:2]), r"`task_factor` must have the shape \(3,\)"),
        ({"task_scheduling": False}, (EFFECT, AFFINITY, None, FACTOR), "`task_factor` takes the place of the factor"),
    ],
)
def test_bad_arguments(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskPromptScheduler(**{"num_tasks": 3, **options})(*arguments)
