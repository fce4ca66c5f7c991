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


def test_a_prompt_source_of_ones_own_trains_is_saved_exported_and_grows(tmp_path, monkeypatch):
    prompted.config()  # the choices have been asked for before this one is there
    monkeypatch.setitem(PROMPT_SOURCES, "scaled", ScaledPrompts)
    run = small_run.trainer(tmp_path, prompted.prompted_clip(torch.float32, prompts="scaled"))
    before = small_run.trained_parameters(run)
    run.train()
    after = small_run.trained_parameters(run)
    assert run.upper_level.updates == 2 and (run.weighting.scheduler.alpha != 1).all()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert read_history(tmp_path / HISTORY_FILE)[0]["affinity"][0][1] not in (0, None)  # of tokens that tasks share

    run.model.save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path / "adapter", is_trainable=True)
    for tower in ("vision", "text"):
        assert torch.equal(model.prompt_tokens(tower).float(), run.model.prompt_tokens(tower))
    pixels, task_ids, labels = prompted.batch(model)
    expected = prompted.oracle_losses(model, pixels, task_ids, labels)
    torch.testing.assert_close(model.classify(pixels, task_ids, labels).task_losses, expected, atol=1e-10, rtol=0)
    folder = model.export_task("photo", tmp_path / "photo", torch.float64)
    with torch.no_grad():
        given = torch.export.load(folder / "classifier.pt2").module()(pixels)
        torch.testing.assert_close(given, model.classify(pixels, 0).logits[:, :3], atol=1e-10, rtol=0)

    model.add_task("birds", ["owl", "ant"], [[oracles.TINY_SOS, word, oracles.TINY_EOS] for word in (5, 6)])
    model.train_only("birds")
    start = model.prompt_tokens("vision").detach()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    model.classify(pixels[:2], 3, torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    unmoved = [torch.equal(*each) for each in zip(start, model.prompt_tokens("vision"), strict=True)]
    assert unmoved == [True, True, True, False]


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
    def never(*_):
        raise AssertionError("uniform weights asked for it")

    run = small_run.trainer(tmp_path, prompt_scheduling=False, task_scheduling=False, max_steps=2)
    monkeypatch.setattr(type(run.model.task_adapter.prompts), "shared_gradients", never)
    monkeypatch.setattr(type(run.model.task_adapter.head), "reference", never)
    run.train()
    assert isinstance(run.weighting, UniformWeighting)
    rows = read_history(tmp_path / HISTORY_FILE)
    assert [row["weight"] for row in rows] == [[1, 1, 1]] * 2 and "causal_effect" not in rows[0]


@pytest.mark.parametrize("given", [{"txt": (3, 3, 2, 24)}, {"text": (2, 24)}, {"text": (3, 4, 2, 24)}])
def test_what_a_source_gives_is_checked(monkeypatch, given):
    class Wrong(PromptSource):
        def forward(self):
            return {name: torch.zeros(shape) for name, shape in given.items()}

    monkeypatch.setitem(PROMPT_SOURCES, "wrong", Wrong)
    with pytest.raises(ValueError, match="the prompt source 'wrong' gives"):
        prompted.prompted_clip(torch.float32, prompts="wrong")
