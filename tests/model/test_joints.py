"""What the joints promise: a method of one's own needs a file of its own, and no change to the package."""

from __future__ import annotations

import oracles
import prompted
import pytest
import small_run
import torch
from peft import PeftModel

from jscpt_peft.evaluation import read_history
from jscpt_peft.model.prompts import PROMPT_SOURCES, PromptSource
from jscpt_peft.scheduling import UniformWeighting, Weighting
from jscpt_peft.training.step_log import HISTORY_FILE


class ScaledPrompts(PromptSource):
    """Two shared tokens in every block of both towers, which each task scales by a number of its own."""

    def __init__(self, start):
        super().__init__(start)
        for tower, width in start.sizes.widths.items():
            tokens = start.normal(start.generator(tower), start.depth(tower), 2, width, std=0.3)
            self.share(f"{tower}_tokens", tokens)
            self.own(f"{tower}_scale", start.zeros(start.num_tasks, 1, 1, 1) + 1)

    def forward(self):
        each = self.tensors()
        return {tower: each[f"{tower}_scale"] * each[f"{tower}_tokens"] for tower in ("vision", "text")}


@pytest.fixture
def scaled(monkeypatch):
    monkeypatch.setitem(PROMPT_SOURCES, "scaled", ScaledPrompts)
    return lambda dtype=torch.float32: prompted.prompted_clip(dtype, prompts="scaled")


class TestAPromptSourceOfOnesOwn:
    def test_computes_what_the_oracle_does(self, scaled):
        model = scaled(torch.float64)
        with torch.no_grad():
            model.task_adapter.prompts.vision_scale.mul_(torch.tensor([1.0, 0.5, 2.0])[:, None, None, None])
        batch = prompted.batch(model)
        losses = model.classify(*batch).task_losses
        torch.testing.assert_close(losses, prompted.oracle_losses(model, *batch), atol=1e-10, rtol=0)

    def test_trains_with_updates_of_omega_saves_and_loads(self, scaled, tmp_path):
        run = small_run.trainer(tmp_path, scaled())
        before = small_run.trained_parameters(run)
        run.train()
        after = small_run.trained_parameters(run)
        assert run.upper_level.updates == 2 and (run.weighting.scheduler.alpha != 1).all()
        assert all(not torch.equal(before[name], after[name]) for name in before)
        affinity = read_history(tmp_path / HISTORY_FILE)[0]["affinity"]
        assert affinity[0][1] not in (0, None)  # of the tokens that the tasks share
        run.model.save_pretrained(tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), tmp_path / "adapter")
        for tower in ("vision", "text"):
            assert torch.equal(loaded.prompt_tokens(tower), run.model.prompt_tokens(tower))

    def test_exports(self, scaled, tmp_path):
        model = scaled().eval()
        folder = model.export_task("photo", tmp_path / "photo")
        pixels, _, _ = prompted.batch(model)
        with torch.no_grad():
            expected = model.classify(pixels, 0).logits[:, :3]
            given = torch.export.load(folder / "classifier.pt2").module()(pixels)
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)

    def test_grows_by_a_task_that_is_trained_alone(self, scaled):
        model = scaled()
        names = ["owl", "ant"]
        model.add_task("birds", names, [[oracles.TINY_SOS, 5 + label, oracles.TINY_EOS] for label in (0, 1)])
        before = model.prompt_tokens("vision").detach()
        model.train_only("birds")
        pixels, _, _ = prompted.batch(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
        model.classify(pixels[:2], 3, torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        after = model.prompt_tokens("vision").detach()
        assert torch.equal(before[:3], after[:3]) and not torch.equal(before[3], after[3])


class LargestLosses(Weighting):
    """More weight to larger losses, by temperatures that the upper level learns."""

    def __init__(self, num_tasks):
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.ones(num_tasks))

    def forward(self, signals):
        logits = (self.temperature * signals.losses).masked_fill(~signals.usable, -torch.inf)
        return signals.usable.sum() * logits.softmax(0)

    def log(self):
        return {"temperature_now": self.temperature.detach().clone()}


def test_a_weighting_of_ones_own_weighs_learns_and_is_logged(tmp_path):
    run = small_run.trainer(tmp_path, weighting=LargestLosses(3))
    run.train()
    rows = read_history(tmp_path / HISTORY_FILE)
    for row in rows:
        logits = torch.tensor(row["temperature_now"]) * torch.tensor(row["loss"])
        assert row["weight"] == pytest.approx((3 * logits.softmax(0)).tolist(), rel=1e-5)
    assert rows[0]["temperature_now"] == [1, 1, 1] and rows[-1]["temperature_now"] != [1, 1, 1]
    assert "affinity" not in rows[0]
    assert any("temperature_now/photo" in logs for logs in run.state.log_history)


def test_uniform_weights_cost_neither_a_gramian_nor_a_reference(tmp_path, monkeypatch):
    options = {"prompt_scheduling": False, "task_scheduling": False, "max_steps": 2}
    run = small_run.trainer(tmp_path, **options)
    assert isinstance(run.weighting, UniformWeighting)

    def never(*_):
        raise AssertionError("uniform weights asked for it")

    monkeypatch.setattr(ScaledPrompts.__base__, "shared_gradients", never)
    monkeypatch.setattr(type(run.model.task_adapter.prompts), "shared_gradients", never)
    monkeypatch.setattr(type(run.model.task_adapter.head), "reference", never)
    run.train()
    rows = read_history(tmp_path / HISTORY_FILE)
    assert [row["weight"] for row in rows] == [[1, 1, 1]] * 2 and "causal_effect" not in rows[0]
