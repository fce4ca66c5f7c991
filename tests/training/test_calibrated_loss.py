"""The D_dev loss that confidence alone cannot lower."""

from __future__ import annotations

import prompted
import pytest
import small_run
import torch
import torch.nn.functional as F
from small_run import trainable

from jscpt_peft.evaluation import read_history
from jscpt_peft.scheduling.hypergradient import flatten
from jscpt_peft.training.calibrated_loss import TEMPERATURES
from jscpt_peft.training.implicit_gradient import dev_gradient
from jscpt_peft.training.step_log import HISTORY_FILE


@pytest.fixture
def model():
    return prompted.prompted_clip(torch.float64)


def test_it_is_the_least_cross_entropy_of_each_task_and_its_gradient_that_of_the_least(model):
    batch = prompted.batch_in_blocks(model, 5, 0)
    means, gradient = dev_gradient(model, trainable(model), [batch], calibrated=True)
    logits, least = model.classify(batch.pixel_values, batch.task_ids).logits, []
    for task, loss in enumerate(means.losses):
        own = batch.task_ids == task
        every = [F.cross_entropy(logits[own] / t, batch.labels[own]) for t in TEMPERATURES.double()]
        least.append(min(every))
        assert float(loss) == pytest.approx(float(least[-1]), rel=1e-5)
        assert float(loss) < float(F.cross_entropy(logits[own], batch.labels[own]))
    by_hand = torch.autograd.grad(sum(least), trainable(model), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradient.double(), flatten(by_hand), rtol=1e-5, atol=1e-6)


def test_it_knows_nothing_of_confidence(model):
    """Logits four times as large, eight temperatures away, have the same loss and the same gradient.

    Of the third task, whose best temperature is not one of the two outermost.
    """
    batch, scale = prompted.batch_in_blocks(model, 5, 0), model.get_base_model().logit_scale
    batch = batch.rows(batch.task_ids == 2)
    found = {}
    for calibrated in (True, False):
        for factor in (1.0, 4.0):
            scale.data += torch.tensor(factor).log()
            means, gradient = dev_gradient(model, trainable(model), [batch], calibrated=calibrated)
            found[calibrated, factor] = means.losses, gradient
            scale.data -= torch.tensor(factor).log()
    for one, other in zip(found[True, 1.0], found[True, 4.0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert float(found[False, 4.0][0][2]) > 1.5 * float(found[False, 1.0][0][2])


def test_pieces_of_a_batch_have_the_temperatures_of_the_whole(model):
    batch = prompted.batch_in_blocks(model, 4, 0)
    pieces = [batch.rows(torch.arange(len(batch.labels)) % 2 == part) for part in (0, 1)]
    whole, split = (dev_gradient(model, trainable(model), each, calibrated=True) for each in ([batch], pieces))
    torch.testing.assert_close(whole[0].losses, split[0].losses)
    torch.testing.assert_close(whole[1], split[1])


def test_a_run_learns_by_it(tmp_path):
    """Ω takes another way than by the cross-entropy, from a loss that is less."""
    alphas, losses = [], []
    for loss in ("cross_entropy", "calibrated"):
        run = small_run.trainer(tmp_path / loss, dev_loss=loss)
        run.train()
        alphas.append(run.weighting.learned()["alpha"].tolist())
        losses.append([row["scheduler"]["dev_loss"] for row in read_history(tmp_path / loss / HISTORY_FILE)[1::2]])
    assert alphas[0] != alphas[1] and all(len(set(each)) > 1 for each in alphas)
    assert losses[1][0] < losses[0][0]


@pytest.mark.parametrize("loss", ["cross_entropy", "calibrated"])
def test_a_task_that_is_not_finite_on_dev_is_left_out(tmp_path, loss, caplog):
    run = small_run.trainer(tmp_path, dev_loss=loss, max_steps=2, neumann_terms=0)
    run = small_run.remade(run, dev_dataset=small_run.Spoiled(run.dev_dataset))
    run.train()
    assert run.upper_level.updates == 1 and "the dev loss of ['clipart'] is not finite" in caplog.text
    assert run.weighting.learned()["alpha"].isfinite().all()


def test_a_loss_of_ones_own_is_refused_beside_it(tmp_path):
    with pytest.raises(ValueError, match=r"`dev_loss` is 'calibrated'.*`compute_loss_func`"):
        small_run.remade(small_run.trainer(tmp_path, dev_loss="calibrated"), compute_loss_func=lambda *_, **__: None)
