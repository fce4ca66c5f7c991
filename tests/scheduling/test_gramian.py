"""Weights of TorchJD in the place of the affinity factor."""

from __future__ import annotations

import doctest
import io
import sys

import pytest
import torch
from cagrad import cagrad_weights
from torch.testing import assert_close

from jscpt_peft.scheduling import AGGREGATORS, GradientAggregator, TaskPromptScheduler

aggregation = pytest.importorskip("torchjd.aggregation", reason="needs the extra `aggregators`")

RANDOM = ("gradvac", "pcgrad", "random")
REMEMBERING = ("gradvac", "pcd")
HERE = torch.tensor([True, True, False, True, True])
ALL = torch.ones(5, dtype=torch.bool)
OPTIONS = {"cagrad": {"c": 0.5}, "fairgrad": {"alpha": 1.0}, "krum": {"n_byzantine": 0, "n_selected": 1}}


def gradients(tasks=5, size=4, seed=1, conflict=0.0):
    """`[N, P]`; some of them conflict."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(tasks, size, generator=generator, dtype=torch.float64) + 0.3
    drawn[0] -= conflict * drawn[-1]
    return drawn


def gramian(**options):
    drawn = gradients(**options)
    return drawn @ drawn.T


def test_every_weighting_of_torchjd_is_there_or_left_out_on_purpose():
    weightings = {name for name in aggregation.__all__ if name.endswith("Weighting")} - {"Weighting"}
    left_out = {f"{name}Weighting" for name in ("Constant", "CRMOGM", "ExcessMTL", "MoDo", "SDMGrad")}
    assert set(AGGREGATORS.values()) == weightings - left_out
    without_weighting = {"ConFIG", "GradDrop", "NashMTL", "TrimmedMean"}
    bases = {"Aggregator", "GramianWeightedAggregator", "WeightedAggregator"}
    aggregators = set(aggregation.__all__) - weightings - {"Weighting"} - without_weighting - bases
    assert {f"{name}Weighting" for name in aggregators} <= weightings


def test_docstring_examples():
    result = doctest.testmod(sys.modules[GradientAggregator.__module__], extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0


# ---- what they give -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_weights_are_those_of_torchjd_for_the_tasks_present(name, scale):
    """Also where the gradients are so small that a solver's absolute tolerance would end it."""
    given = scale * gramian()
    own = given[HERE][:, HERE] if name == "pcd" else gramian()[HERE][:, HERE]
    expected = torch.zeros(5, dtype=torch.float64)
    weighting = vars(aggregation)[AGGREGATORS[name]](**OPTIONS.get(name, {}))
    aggregator = GradientAggregator(name, 5, seed=3)
    expected[HERE] = aggregator._call(weighting, own, "3/7")
    if name == "fairgrad":
        expected /= scale**0.5  # G w = 1/w
    assert_close(aggregator(given, HERE, step=7), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_all_share(name):
    drawn = gramian()
    poisoned = drawn.clone()
    poisoned[2], poisoned[:, 2] = torch.nan, torch.nan  # an absent task's numbers do not matter
    state = torch.get_rng_state()
    first, again = (GradientAggregator(name, 5, seed=3)(matrix, HERE, step=7) for matrix in (drawn, poisoned))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert first.shape == (5,) and first.isfinite().all() and first.abs().sum() > 0
    assert first[2] == 0
    assert not first.requires_grad

    single = GradientAggregator(name, 5, seed=3)(drawn.float().requires_grad_(), HERE, step=7)
    assert single.dtype == torch.float32 and not single.requires_grad
    assert_close(single, first.float(), rtol=1e-2, atol=1e-3)
    half = GradientAggregator(name, 5, seed=3)(drawn.bfloat16(), HERE, step=7)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_draws_are_a_function_of_seed_and_step(name):
    drawn = gramian(conflict=1.0)

    def weights(seed, step):
        return GradientAggregator(name, 5, seed=seed)(drawn, ALL, step=step)

    torch.manual_seed(5)
    first = weights(3, 7)
    torch.manual_seed(6)
    assert torch.equal(weights(3, 7), first)
    other = [weights(3, step) for step in range(8, 12)] + [weights(seed, 7) for seed in range(4, 8)]
    assert all(torch.equal(each, first) for each in other) == (name not in RANDOM)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_state_goes_through_a_file_that_holds_no_code(name):
    drawn = [gramian(seed=seed, conflict=1.0) for seed in range(6)]
    present = [ALL, ALL, HERE, ALL, HERE, ALL]
    whole = GradientAggregator(name, 5, seed=3)
    expected = [whole(*each, step) for step, each in enumerate(zip(drawn, present, strict=True))]

    stopped = GradientAggregator(name, 5, seed=3)
    for step in range(3):
        stopped(drawn[step], present[step], step)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    state = torch.get_rng_state()
    resumed = GradientAggregator(name, 5, seed=3)
    resumed(drawn[5], ALL, 0)  # forgotten by what is loaded
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(torch.get_rng_state(), state)
    for step in range(3, 6):
        assert torch.equal(resumed(drawn[step], present[step], step), expected[step])
    assert bool(stopped.state_dict()) == (name in REMEMBERING)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_task_missing_for_a_step_disturbs_no_memory_of_all(name):
    drawn = [gramian(seed=seed, conflict=1.0) for seed in range(3)]
    disturbed, undisturbed = GradientAggregator(name, 5), GradientAggregator(name, 5)
    disturbed(drawn[0], ALL, 0), undisturbed(drawn[0], ALL, 0)
    disturbed(drawn[1], HERE, 1)
    remembered = disturbed(drawn[2], ALL, 2)
    assert torch.equal(remembered, undisturbed(drawn[2], ALL, 2))
    assert not torch.equal(remembered, GradientAggregator(name, 5)(drawn[2], ALL, 2))


def test_state_of_another_aggregator():
    aggregator = GradientAggregator("gradvac", 5)
    aggregator(gramian(), ALL, 0)
    for other in (GradientAggregator("cagrad", 5), GradientAggregator("pcd", 5), GradientAggregator("gradvac", 4)):
        with pytest.raises(ValueError, match=r"the state .* is not that of `gradient_aggregator="):
            other.load_state_dict(aggregator.state_dict())


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_factor_of_one_where_there_is_nothing_to_weigh(name):
    aggregator = GradientAggregator(name, 5)
    assert torch.equal(aggregator(torch.zeros(5, 5), HERE, 1), HERE.float())
    one = torch.tensor([False, False, True, False, False])
    assert torch.equal(aggregator(gramian(), one, 1), one.double())
    assert torch.equal(aggregator(gramian(), ~ALL, 1), torch.zeros(5).double())
    assert torch.equal(GradientAggregator("mgda", 1)(torch.ones(1, 1), ALL[:1], 1), torch.ones(1))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_one_zero_gradient_and_equal_ones_give_finite_weights(name):
    drawn = gradients()
    drawn[1], drawn[3] = 0, drawn[2]
    assert GradientAggregator(name, 5)(drawn @ drawn.T, ALL, 1).isfinite().all()


# ---- CAGrad ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("tasks", [2, 3])
def test_cagrad_is_the_optimum_of_its_paper(tasks, c):
    for seed in range(4):
        drawn = gradients(tasks, seed=seed, conflict=1.5)
        weights = GradientAggregator("cagrad", tasks, cagrad_c=c)(drawn @ drawn.T, ALL[:tasks], 1)
        assert_close(weights, cagrad_weights(drawn, c), rtol=1e-3, atol=1e-3)
        # And of the primal problem: no direction in the ball serves the worst task better.
        mean, direction = drawn.mean(0), weights @ drawn
        radius = c * mean.norm()
        assert (direction - mean).norm() <= radius * (1 + 1e-4) + 1e-12
        others = torch.nn.functional.normalize(torch.randn(2000, 4, dtype=torch.float64), dim=1) * radius + mean
        assert (drawn @ direction).min() >= (others @ drawn.T).min(1).values.max() - 1e-4


def test_c_of_cagrad_takes_effect():
    given = gramian(conflict=1.0)
    none, some = (GradientAggregator("cagrad", 5, cagrad_c=c)(given, ALL, 1) for c in (0.0, 0.5))
    assert_close(none, torch.full((5,), 0.2).double())  # the mean gradient
    assert_close(some, GradientAggregator("cagrad", 5)(given, ALL, 1))
    assert not torch.allclose(some, none, atol=0.05)


def test_alpha_of_fairgrad_is_that_of_its_equation():
    """G w = w^(-1/α)."""
    for alpha in (0.5, 2.0):
        weights = GradientAggregator("fairgrad", 3, fairgrad_alpha=alpha)(1e-6 * gramian(tasks=3), ALL[:3], 1)
        assert_close(1e-6 * gramian(tasks=3) @ weights, weights ** (-1 / alpha), rtol=1e-3, atol=0)


def test_krum_selects_the_central_tasks():
    drawn = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [-9.0, 5.0], [1.0, 0.1]])
    chosen = GradientAggregator("krum", 5, krum_byzantine=1, krum_selected=3)(drawn @ drawn.T, ALL, 1)
    assert (chosen > 0).sum() == 3 and chosen[3] == 0
    assert_close(chosen.sum(), torch.tensor(1.0))


def test_krum_needs_tasks():
    with pytest.raises(ValueError, match=r"`gradient_aggregator='krum'` needs .* got 4 tasks with `krum_byzantine=2`"):
        GradientAggregator("krum", 4, krum_byzantine=2)
    with pytest.raises(ValueError, match=r"got 4 tasks with `krum_byzantine=0` and `krum_selected=5`"):
        GradientAggregator("krum", 4, krum_selected=5)
    enough = GradientAggregator("krum", 5, krum_byzantine=2)
    assert (enough(gramian(), ALL, 1) > 0).sum() == 1
    assert torch.equal(enough(gramian(), HERE, 1), HERE.double())  # too few in this step


# ---- in Eq. 6 -------------------------------------------------------------------------------------------------------

EFFECT = torch.tensor([0.9, 0.6, 0.75])
FACTOR = torch.tensor([0.2, 1.4, 0.7])


def weigh(factor, normalization="sum", present=None, **options):
    scheduler = TaskPromptScheduler(3, weight_normalization=normalization, **options)
    return scheduler(EFFECT, torch.rand(3, 3), present, factor), scheduler


def test_factor_stands_in_the_place_of_the_affinities():
    prompt = torch.sigmoid(EFFECT)
    assert_close(weigh(FACTOR, "none")[0], prompt * FACTOR)
    assert_close(weigh(FACTOR)[0], prompt * FACTOR * 3 / (prompt * FACTOR).sum())
    assert_close(weigh(FACTOR, "none", prompt_scheduling=False)[0], FACTOR)
    present = torch.tensor([True, False, True])
    factor = torch.tensor([0.2, torch.nan, 0.7])
    assert_close(weigh(factor, "none", present)[0], torch.where(present, prompt * FACTOR, 0))


def test_beta_has_no_gradient_and_alpha_has():
    weights, scheduler = weigh(FACTOR)
    alpha, beta = torch.autograd.grad(weights[0], [scheduler.alpha, scheduler.beta], allow_unused=True)
    assert beta is None and (alpha != 0).all()


def test_weights_of_both_signs_keep_them_and_stay_bounded():
    """Divided by their sum, which is next to zero here, they would be thousands."""
    factor = torch.tensor([1.0, -0.999, 0.0]) / torch.sigmoid(EFFECT)
    weights, _ = weigh(factor)
    assert_close(weights, torch.tensor([1.0, -0.999, 0.0]) * 3 / 1.999)
    assert weights.abs().max() <= 3


def test_weights_that_are_all_zero_stay_so():
    weights, scheduler = weigh(torch.zeros(3))
    assert weights.eq(0).all()
    gradients = torch.autograd.grad(weights.sum(), list(scheduler.parameters()), allow_unused=True)
    assert all(each is None or each.eq(0).all() for each in gradients)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`gradient_aggregator` must be one of .* Did you mean 'upgrad'\?"):
        GradientAggregator("upgrd", 3)
    aggregator = GradientAggregator("mgda", 3)
    with pytest.raises(ValueError, match=r"must have the shapes \(3, 3\) and \(3,\), the latter bool, got \(5, 5\)"):
        aggregator(gramian(), ALL, 1)
    with pytest.raises(ValueError, match=r"the latter bool, got \(3, 3\) and \(3,\) of torch.int64"):
        aggregator(gramian(tasks=3), torch.tensor([1, 1, 0]), 1)
    with pytest.raises(ValueError, match="`task_factor` takes the place of the factor that `task_scheduling=False`"):
        weigh(FACTOR, task_scheduling=False)
    with pytest.raises(ValueError, match=r"`task_factor` must have the shape \(3,\)"):
        weigh(FACTOR[:2])


def test_weights_that_are_not_finite():
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
