"""Weights of TorchJD in the place of the affinity factor."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from cagrad import cagrad_weights
from torch.testing import assert_close

from jscpt_peft.scheduling import AGGREGATORS, GradientAggregator

aggregation = pytest.importorskip("torchjd.aggregation", reason="needs the extra `aggregators`")

RANDOM = ("gradvac", "pcgrad", "random")
REMEMBERING = ("gradvac", "pcd")
ALL, HERE = torch.ones(5, dtype=torch.bool), torch.tensor([True, True, False, True, True])
OPTIONS = {"cagrad": {"c": 0.5}, "fairgrad": {"alpha": 1.0}, "krum": {"n_byzantine": 0, "n_selected": 1}}

every = pytest.mark.parametrize("name", AGGREGATORS)


def gradients(tasks=5, seed=1, conflict=1.0):
    """`[N, 4]`; some of them conflict."""
    drawn = torch.randn(tasks, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3
    drawn[0] -= conflict * drawn[-1]
    return drawn


def gramian(**options):
    drawn = gradients(**options)
    return drawn @ drawn.T


def test_every_weighting_of_torchjd_is_there_or_left_out_on_purpose():
    weightings = {name for name in aggregation.__all__ if name.endswith("Weighting")} - {"Weighting"}
    left_out = {f"{name}Weighting" for name in ("Constant", "CRMOGM", "ExcessMTL", "MoDo", "SDMGrad")}
    assert set(AGGREGATORS.values()) == weightings - left_out


# ---- what they give -------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_weights_are_those_of_torchjd_for_the_tasks_present(name, scale):
    """Also where the gradients are so small that a solver's absolute tolerance would end it."""
    given = scale * gramian(conflict=0)
    own = given[HERE][:, HERE] if name == "pcd" else gramian(conflict=0)[HERE][:, HERE]
    aggregator, expected = GradientAggregator(name, 5, seed=3), torch.zeros(5, dtype=torch.float64)
    expected[HERE] = aggregator._call(vars(aggregation)[AGGREGATORS[name]](**OPTIONS.get(name, {})), own, "3/7")
    if name == "fairgrad":
        expected /= scale**0.5  # G w = 1/w
    assert_close(aggregator(given, HERE, step=7), expected, rtol=1e-3, atol=1e-4)


@every
def test_a_function_of_gramian_tasks_seed_and_step(name):
    def weights(given, present=HERE, seed=3, step=7):
        return GradientAggregator(name, 5, seed=seed)(given, present, step=step)

    drawn, state = gramian(), torch.get_rng_state()
    first = weights(drawn)
    assert torch.equal(torch.get_rng_state(), state)  # the global one stays as it is
    torch.manual_seed(5)
    poisoned = drawn.clone()
    poisoned[2], poisoned[:, 2] = torch.nan, torch.nan  # an absent task's numbers do not matter
    assert torch.equal(weights(poisoned), first)
    assert first.shape == (5,) and first.isfinite().all() and first[2] == 0
    others = [weights(drawn, step=step) for step in range(8, 12)] + [weights(drawn, seed=seed) for seed in range(4, 8)]
    assert all(torch.equal(each, first) for each in others) == (name not in RANDOM)
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.bfloat16, torch.inf)):
        given = weights(gramian(conflict=0).to(dtype).requires_grad_())
        assert given.dtype == dtype and given.isfinite().all() and not given.requires_grad
        assert_close(given.double(), weights(gramian(conflict=0)), rtol=tolerance, atol=1e-3)


@every
def test_where_there_is_little_or_nothing_to_weigh(name):
    aggregator = GradientAggregator(name, 5)
    only = torch.arange(5) == 2
    assert torch.equal(aggregator(torch.zeros(5, 5), HERE, 1), HERE.float())  # a factor of one
    assert torch.equal(aggregator(gramian(), only, 1), only.double())
    assert torch.equal(aggregator(gramian(), ~ALL, 1), torch.zeros(5).double())
    drawn = gradients()
    drawn[1], drawn[3] = 0, drawn[2]  # one zero gradient and two equal ones
    assert aggregator(drawn @ drawn.T, ALL, 1).isfinite().all()


# ---- what they remember ---------------------------------------------------------------------------------------------


@every
def test_state_goes_through_a_file_that_holds_no_code(name):
    steps = [(gramian(seed=step), HERE if step in (2, 4) else ALL, step) for step in range(6)]
    whole, stopped, resumed = (GradientAggregator(name, 5, seed=3) for _ in range(3))
    expected = [whole(*each) for each in steps]
    for each in steps[:3]:
        stopped(*each)
    resumed(*steps[5])  # forgotten by what is loaded
    torch.save(stopped.state_dict(), file := io.BytesIO())
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(resumed(*each), weights) for each, weights in zip(steps[3:], expected[3:], strict=True))
    assert bool(stopped.state_dict()) == (name in REMEMBERING)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_task_missing_for_a_step_disturbs_no_memory_of_all(name):
    disturbed, undisturbed = GradientAggregator(name, 5), GradientAggregator(name, 5)
    disturbed(gramian(seed=0), ALL, 0), undisturbed(gramian(seed=0), ALL, 0)
    disturbed(gramian(seed=1), HERE, 1)
    remembered = disturbed(gramian(seed=2), ALL, 2)
    assert torch.equal(remembered, undisturbed(gramian(seed=2), ALL, 2))
    assert not torch.equal(remembered, GradientAggregator(name, 5)(gramian(seed=2), ALL, 2))


def test_state_of_another_aggregator():
    aggregator = GradientAggregator("gradvac", 5)
    aggregator(gramian(), ALL, 0)
    for other in (GradientAggregator("cagrad", 5), GradientAggregator("pcd", 5), GradientAggregator("gradvac", 4)):
        with pytest.raises(ValueError, match=r"the state .* is not that of `gradient_aggregator="):
            other.load_state_dict(aggregator.state_dict())


# ---- options of some ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"cagrad_c": 0.0}, {"cagrad_c": 0.2}, {}, {"cagrad_c": 0.9}])
@pytest.mark.parametrize("tasks", [2, 3])
def test_cagrad_is_the_optimum_of_its_paper(tasks, options):
    c = options.get("cagrad_c", 0.5)
    for seed in range(4):
        drawn = gradients(tasks, seed, conflict=1.5)
        weights = GradientAggregator("cagrad", tasks, **options)(drawn @ drawn.T, ALL[:tasks], 1)
        assert_close(weights, cagrad_weights(drawn, c), rtol=1e-3, atol=1e-3)
        # And of the primal problem: no direction in the ball serves the worst task better.
        mean, direction = drawn.mean(0), weights @ drawn
        radius = c * mean.norm()
        assert (direction - mean).norm() <= radius * (1 + 1e-4) + 1e-12
        others = torch.nn.functional.normalize(torch.randn(2000, 4, dtype=torch.float64), dim=1) * radius + mean
        assert (drawn @ direction).min() >= (others @ drawn.T).min(1).values.max() - 1e-4


def test_alpha_of_fairgrad_is_that_of_its_equation():
    """G w = w^(-1/α)."""
    given = 1e-6 * gramian(tasks=3, conflict=0)
    for alpha in (0.5, 2.0):
        weights = GradientAggregator("fairgrad", 3, fairgrad_alpha=alpha)(given, ALL[:3], 1)
        assert_close(given @ weights, weights ** (-1 / alpha), rtol=1e-3, atol=0)


def test_krum_selects_the_central_tasks_of_enough():
    drawn = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [-9.0, 5.0], [1.0, 0.1]])
    chosen = GradientAggregator("krum", 5, krum_byzantine=1, krum_selected=3)(drawn @ drawn.T, ALL, 1)
    assert (chosen > 0).sum() == 3 and chosen[3] == 0
    assert_close(chosen.sum(), torch.tensor(1.0))
    for options in ({"krum_byzantine": 2}, {"krum_selected": 5}):
        with pytest.raises(ValueError, match=r"`gradient_aggregator='krum'` needs .* got 4 tasks with `krum_byz"):
            GradientAggregator("krum", 4, **options)
    too_few = GradientAggregator("krum", 5, krum_byzantine=2)(gramian(), HERE, 1)
    assert torch.equal(too_few, HERE.double())


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`gradient_aggregator` must be one of .* Did you mean 'upgrad'\?"):
        GradientAggregator("upgrd", 3)
    aggregator = GradientAggregator("mgda", 3)
    with pytest.raises(ValueError, match=r"must have the shapes \(3, 3\) and \(3,\), the latter bool, got \(5, 5\)"):
        aggregator(gramian(), ALL, 1)
    with pytest.raises(ValueError, match=r"the latter bool, got \(3, 3\) and \(3,\) of torch.int64"):
        aggregator(gramian(tasks=3), torch.tensor([1, 1, 0]), 1)
    infinite = gramian()
    infinite[1, 1] = torch.inf
    with pytest.raises(FloatingPointError, match=r"`gradient_aggregator='pcd'` gives the weights \[nan.* in step 4"):
        GradientAggregator("pcd", 5)(infinite, ALL, 4)


@pytest.mark.parametrize(("name", "missing"), [("mgda", "torchjd"), ("cagrad", "cvxpy"), ("upgrad", "quadprog")])
def test_a_missing_package_is_named_with_the_remedy(monkeypatch, name, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    remedy = rf"`gradient_aggregator='{name}'` needs .*{missing}.*`pip install 'jscpt-peft\[aggregators\]'`"
    with pytest.raises(ImportError, match=remedy):
        GradientAggregator(name, 3)
