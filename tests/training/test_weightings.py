"""Weightings beside Eq. 6 through the whole trainer."""

from __future__ import annotations

import prompted
import pytest
import small_run
import torch
from peft import get_peft_model

from jscpt_peft import JSCPTConfig
from jscpt_peft.evaluation import read_history
from jscpt_peft.training.step_log import HISTORY_FILE

FAST = {"weighting_learning_rate": 0.3}
OPTIONS = {"uw": FAST, "gradnorm": FAST, "famo": FAST, "dwa": {"dwa_temperature": 0.1}, "pcgrad": {}}
# Two steps an epoch, so that DWA has something to compare in the fifth one.
STEPS = {"max_steps": 6, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}


def run(folder, name, **options):
    return small_run.trainer(folder, weighting=name, **{**STEPS, **OPTIONS.get(name, {}), **options})


@pytest.mark.parametrize("name", OPTIONS)
def test_weighs_and_goes_on_after_a_stop_as_if_there_had_been_none(tmp_path, name):
    if name == "pcgrad":
        pytest.importorskip("torchjd", reason="needs the extra `aggregators`")
    whole, resumed = run(tmp_path / "whole", name), run(tmp_path / "resumed", name)
    whole.train()
    assert not list(whole.weighting.parameters()) and whole.upper_level.updates == 0  # no Ω
    rows = read_history(tmp_path / "whole" / HISTORY_FILE)
    assert all(sum(map(abs, row["weight"])) == pytest.approx(3, abs=1e-5) for row in rows)
    assert max(abs(weight - 1) for weight in rows[-1]["weight"]) > 0.02
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert read_history(tmp_path / "resumed" / HISTORY_FILE) == rows[3:]
    expected, state = whole.weighting.state_dict(), resumed.weighting.state_dict()
    tensors = [key for key, value in expected.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(state[key], expected[key]) for key in tensors)
    expected = small_run.trained_parameters(whole)
    assert all(torch.equal(each, expected[key]) for key, each in small_run.trained_parameters(resumed).items())


def test_weights_as_published_where_they_are_not_normalised(tmp_path):
    run(tmp_path, "famo", weight_normalization="none", max_steps=2).train()
    for row in read_history(tmp_path / HISTORY_FILE):
        assert sum(row["weight"]) == pytest.approx(1, abs=1e-5)


def test_uniform_by_name_and_its_gradient_cosines_where_they_are_asked_for(tmp_path):
    rows = {}
    for name, cosines in (("uniform", False), ("uniform", True), ("scheduler", False)):
        run(tmp_path, name, max_steps=1, log_gradient_cosines=cosines).train()
        (rows[name, cosines],) = read_history(tmp_path / HISTORY_FILE)
    plain, logged, scheduled = rows.values()
    assert plain["weight"] == [1, 1, 1]
    assert logged == {**plain, "gradient_cosine": scheduled["gradient_cosine"]}


@pytest.mark.parametrize("single_task", [False, True])
def test_what_tasks_share_of_a_head_counts_where_they_share_no_prompts(tmp_path, single_task):
    """CLIP-Adapter has no prompts; alone, its tasks share nothing, and there is nothing to weigh."""
    options = {"class_token_ids": prompted.class_token_ids(), "single_task": single_task}
    config = JSCPTConfig.for_method("clip_adapter", tasks=prompted.TASKS, **options)
    model = get_peft_model(prompted.oracles.tiny_clip(dtype=torch.float32), config)
    if single_task:
        with pytest.raises(ValueError, match=r"`weighting='gradnorm'` weighs .* share no parameter"):
            run(tmp_path, "gradnorm", model=model)
        return
    run(tmp_path, "gradnorm", model=model).train()
    weights = read_history(tmp_path / HISTORY_FILE)[-1]["weight"]
    assert max(abs(weight - 1) for weight in weights) > 0.02
