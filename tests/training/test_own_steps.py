"""Steps of the tasks' own parameters: weighed by φ under any optimizer, and held near the other tasks'."""

from __future__ import annotations

import prompted
import pytest
import small_run
import torch

from jscpt_peft.scheduling import Weighting
from jscpt_peft.training.own_steps import own_stacks

WEIGHTS = (1.8, 0.2, 1.0)


class Fixed(Weighting):
    def __init__(self, weights) -> None:
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, signals):
        return self.weights * signals.usable


def steps_of(path, weights=WEIGHTS, **options):
    """What one run adds to every parameter, the names of the stacks, and its trainer."""
    options = {"max_steps": 1, "optim": "adamw_torch", "lr_scheduler_type": "constant", **options}
    model = prompted.prompted_clip(torch.float64, class_residual="both")
    run = small_run.trainer(path, model, weighting=Fixed(weights), **options)
    with torch.no_grad():  # residuals start at zero, of which no pull is seen
        run.model.task_adapter.class_residual.own_rows.add_(0.1)
        start = small_run.trained_parameters(run)
    stacks = {id(getattr(part, name)) for part, name in own_stacks(run.model)}
    names = {name for name, each in run.model.named_parameters() if id(each) in stacks}
    run.train()
    return {name: each - start[name] for name, each in small_run.trained_parameters(run).items()}, names, start


def test_weights_scale_the_steps_that_an_adaptive_optimizer_makes(tmp_path):
    """Its step of a task's own parameters is the same whatever their gradient is weighed by."""
    options = {"weight_decay": 0.1, "adam_epsilon": 1e-14}
    equal, stacks, _ = steps_of(tmp_path / "1", (1.0, 1.0, 1.0), **options)
    plain, *_ = steps_of(tmp_path / "2", **options)
    scaled, *_ = steps_of(tmp_path / "3", **options, weigh_own_steps=True)
    assert stacks and stacks < equal.keys()
    for name, step in scaled.items():
        if name in stacks:
            weights = torch.tensor(WEIGHTS).double().view(-1, *[1] * (step.dim() - 1))
            torch.testing.assert_close(step, weights * equal[name], atol=1e-9, rtol=1e-6)
            torch.testing.assert_close(plain[name], equal[name], atol=1e-7, rtol=1e-6)
        else:
            torch.testing.assert_close(step, plain[name], atol=0, rtol=0)


def test_of_plain_sgd_weighed_steps_are_those_of_weighed_gradients(tmp_path):
    options = {"optim": "sgd", "momentum": 0.0, "max_steps": 3}
    plain, *_ = steps_of(tmp_path / "1", **options)
    scaled, *_ = steps_of(tmp_path / "2", **options, weigh_own_steps=True)
    for name, step in scaled.items():
        torch.testing.assert_close(step, plain[name], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("prior", "pull"), [(2.0, 0.1), (100.0, 1.0)])
def test_the_prior_draws_towards_the_weighted_mean_and_residuals_to_zero(tmp_path, prior, pull):
    free, stacks, start = steps_of(tmp_path / "1")
    held, *_ = steps_of(tmp_path / "2", task_prior=prior)
    weights = torch.tensor(WEIGHTS).double() / 3
    for name, step in held.items():
        after = start[name] + free[name]
        if name in stacks:
            centre = 0 if "own_rows" in name else torch.tensordot(weights, after, 1)
            after = after + pull * (centre - after)
        torch.testing.assert_close(start[name] + step, after, atol=1e-7, rtol=1e-6)


def test_auto_follows_the_length_of_the_run(tmp_path):
    run = small_run.trainer(tmp_path, max_steps=3, lower_steps="auto", scheduler_learning_rate="auto", neumann_terms=0)
    for steps in (1, 63, 100, 272, 5000):
        run.upper_level.begin(steps)
        updates = sum(run.upper_level.due(step) for step in range(1, steps + 1))
        assert min(steps, 64) <= updates < 128
        assert run.upper_level.optimizer.param_groups[0]["lr"] * updates == pytest.approx(min(16, updates / 4))
    run.train()
    assert run.upper_level.updates == 3 and run.upper_level.optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("options", [{"task_prior": 2.0}, {"weigh_own_steps": True}])
def test_own_steps_need_parameters_of_the_tasks_own(options, tmp_path):
    model = prompted.prompted_clip(torch.float32, num_task_tokens=0, intervention="none")
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is .* train no parameters of their own"):
        small_run.trainer(tmp_path, model, **options).train()
