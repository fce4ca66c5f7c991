"""The card that a trainer writes beside its adapter, without any Hub."""

from __future__ import annotations

import copy
import json
import pickle

import prompted
import pytest
import small_run
import torch
from huggingface_hub import ModelCard

from jscpt_peft.evaluation import results_table, write_results
from jscpt_peft.model import JSCPTPeftModel


@pytest.fixture
def trained(tmp_path):
    run = small_run.trainer(tmp_path / "run", gradient_accumulation_steps=2)
    run.train()
    return run, tmp_path / "run"


def test_configuration_and_last_evaluation(trained):
    run, output = trained
    run.evaluate()
    metrics = run.evaluate(small_run.pictures("test"), metric_key_prefix="test")
    run.save_model()
    card = ModelCard.load(output / "README.md")
    assert "4 steps" in card.text
    for line in ("| `gradient_accumulation_steps` | 2 |", "| `optim` | sgd |", "| `train images` | [8, 5, 6] |"):
        assert line in card.text.splitlines()
    run.create_model_card(model_name="My adapter")
    text = (output / "README.md").read_text()
    assert "# My adapter" in text and '"path/or/hub-id")' in text
    assert "cagrad_c" not in card.text  # without an aggregator it decides nothing
    found = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert found.pop("mean of the tasks") == pytest.approx(metrics["test_mean_accuracy"])
    assert found == {task: metrics[f"test_accuracy/{task}"] for task in prompted.TASKS}
    assert "Accuracy on `test`" in card.text
    assert "| photo | {:.1f} |".format(100 * metrics["test_accuracy/photo"]) in card.text
    assert "- device: CPU, 1 process\n- training time: " in card.text


def test_before_any_evaluation(trained):
    run, output = trained
    run.save_model()
    card = ModelCard.load(output / "README.md")
    assert card.data.eval_results is None
    assert "Nothing was recorded with this card." in card.text


def test_results_and_pictures_of_this_evaluation_alone(trained):
    run, output = trained
    (output / "losses.png").write_bytes(b"")
    metrics = run.evaluate()
    of_another_run = {name: value + 0.1 for name, value in metrics.items() if "accuracy" in name}
    for after, shown in ((of_another_run, False), (metrics, True)):
        written = write_results(results_table(metrics, after, list(prompted.TASKS), "eval_"), output)
        run.create_model_card()
        text = (output / "README.md").read_text()
        assert (written[1].read_text().strip() in text) == shown
        assert ("(losses.png)" in text) == shown
    assert json.loads(written[0].read_text())["tasks"].keys() == prompted.TASKS.keys()


def test_somebody_elses_results_are_passed_over(trained):
    run, output = trained
    run.evaluate()
    (output / "results.md").write_text("mine")
    for content in ("no JSON", "[]", "{}", '{"tasks": {"photo": 1}}'):
        (output / "results.json").write_text(content)
        run.save_model()
        assert "mine" not in (output / "README.md").read_text()


def test_an_edited_card_stays(trained):
    run, output = trained
    run.save_model()
    path = output / "README.md"
    path.write_text(path.read_text().replace("## Limits", "## What I know of its limits"))
    edited = path.read_text()
    run.create_model_card(license="mit")
    run.save_model()
    assert path.read_text() == edited


def test_the_class_survives_copies():
    """A `PeftModel` that has become ours stays so, and is still a `PeftModel` to everybody."""
    model = prompted.prompted_clip(torch.float32)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(one) is JSCPTPeftModel
