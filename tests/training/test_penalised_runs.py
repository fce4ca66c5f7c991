"""Heads with penalties and a bank of confounders through the whole trainer."""

from __future__ import annotations

import prompted
import pytest
import small_run
import torch

from jscpt_peft.evaluation import read_history
from jscpt_peft.scheduling.hypergradient import flatten
from jscpt_peft.training.hessian import HessianProduct, kept_graph
from jscpt_peft.training.implicit_gradient import dev_gradient
from jscpt_peft.training.step_log import HISTORY_FILE
from jscpt_peft.training.task_gradients import Batch

PROJECTED = {"prompts": "projected", "num_task_tokens": 0, "intervention": "decoupled", "num_confounders": 5}
MODULAR = {"intervention": "modular", "num_modules": 3}
heads = pytest.mark.parametrize("options", [PROJECTED, MODULAR], ids=["decoupled", "modular"])


def state(run) -> dict[str, torch.Tensor]:
    """The adapter, with its bank."""
    return {name: tensor.clone() for name, tensor in run.model.task_adapter.state_dict().items()}


@heads
def test_the_upper_level_differentiates_penalties_twice_and_leaves_them_out_of_the_dev_loss(options):
    model = prompted.prompted_clip(**options, decorrelation_weight=0.1)
    batch, weights = Batch(*prompted.batch(model, per_task=4)), torch.tensor([0.5, 1.6, 0.9]).double()
    parameters = small_run.trainable(model)
    size, generator = sum(each.numel() for each in parameters), torch.Generator().manual_seed(5)
    vector = torch.randn(size, dtype=torch.float64, generator=generator)
    exact = HessianProduct(model, parameters, [batch], weights, kept=kept_graph(model, batch))(vector)
    difference = HessianProduct(model, parameters, [batch], weights, "finite_difference")(vector)
    assert (exact - difference).norm() < 1e-6 * exact.norm()
    plain = model.classify(*batch)
    expected = torch.autograd.grad(plain.task_losses.sum(), parameters, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(dev_gradient(model, parameters, [batch])[1], flatten(expected), atol=1e-12, rtol=1e-10)


def test_learned_weights_and_a_bank_that_fills_and_is_resumed(tmp_path):
    runs = [
        small_run.trainer(
            tmp_path / name,
            prompted.prompted_clip(torch.float32, **PROJECTED),
            weighting="loss_cosine",
            save_strategy="steps",
            save_steps=2,
        )
        for name in ("whole", "resumed")
    ]
    whole, resumed = runs
    whole.train()
    assert whole.upper_level.updates == 2 and (whole.weighting.alpha != 1).all() and (whole.weighting.beta != 1).all()
    rows = read_history(tmp_path / "whole" / HISTORY_FILE)
    assert sum(rows[0]["weight"]) == pytest.approx(3, abs=1e-5) and rows[0]["loss_level"] != rows[1]["loss_level"]
    assert all(min(row["penalty"]) > 0 for row in rows)
    bank = whole.model.task_adapter.head.bank
    assert len(bank.unique(dim=0)) == 5  # four steps of three tasks
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected, given = state(whole), state(resumed)
    assert "head.bank" in given and all(torch.equal(given[name], expected[name]) for name in expected)
    whole.model.save_pretrained(tmp_path / "adapter")
    loaded = prompted.prompted_clip(torch.float32)
    loaded.load_adapter(tmp_path / "adapter", "other")
    loaded.set_adapter("other")
    assert torch.equal(loaded.task_adapter.head.bank, bank)


def test_batches_add_up_but_for_their_correlations(tmp_path):
    """So does what is observed."""
    ends = []
    for batch, accumulation in ((4, 1), (1, 4)):
        run = small_run.trainer(
            tmp_path / str(batch),
            prompted.prompted_clip(**PROJECTED, decorrelation_weight=0.0),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            weighting="uniform",
            max_steps=2,
        )
        run.train()
        ends.append(state(run))
    torch.testing.assert_close(*ends, atol=1e-10, rtol=1e-10)


def test_a_task_that_is_not_finite_leaves_the_bank_and_the_others_alone(tmp_path):
    run = small_run.trainer(
        tmp_path, prompted.prompted_clip(torch.float32, **PROJECTED), weighting="uniform", max_steps=1
    )
    run.train_dataset = small_run.Spoiled(run.train_dataset)
    with pytest.raises(FloatingPointError, match="tasks were not finite in the last 1 steps"):
        run.train()
    assert run.model.task_adapter.head.bank.isfinite().all()
    assert (run.model.task_adapter.head.bank.abs().sum(1) > 0).sum() == 2
