"""The card that a trainer writes beside its adapter, without any Hub."""

from __future__ import annotations

import json
import re
import shlex

import prompted
import pytest
import small_run
import torch
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from jscpt_peft.evaluation import results_table, write_results


@pytest.fixture
def trained(tmp_path):
    run = small_run.trainer(tmp_path, gradient_accumulation_steps=2, max_steps=2)
    run.train()
    return run, tmp_path


@pytest.fixture
def untrained(tmp_path):
    """For what the steps do not matter to."""
    return small_run.trainer(tmp_path), tmp_path


def test_configuration_and_last_evaluation(trained):
    run, output = trained
    run.evaluate()
    metrics = run.evaluate(small_run.pictures("test"), metric_key_prefix="test")
    run.save_model()
    card = ModelCard.load(output / "README.md")
    assert "2 steps" in card.text
    for line in ("| `gradient_accumulation_steps` | 2 |", "| `optim` | sgd |", "| `train images` | [8, 5, 6] |"):
        assert line in card.text.splitlines()
    run.create_model_card(model_name="My adapter")
    text = (output / "README.md").read_text()
    assert "# My adapter" in text and '"path/or/hub-id")' in text
    assert "cagrad_c" not in card.text  # without an aggregator it decides nothing
    found = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert "| mean of the tasks | {:.1f} |".format(100 * metrics["test_mean_accuracy"]) in card.text
    assert found == {task: metrics[f"test_accuracy/{task}"] for task in prompted.TASKS}
    assert "Accuracy on `test`" in card.text
    assert "| photo | {:.1f} |".format(100 * metrics["test_accuracy/photo"]) in card.text
    assert "- device: CPU, 1 process\n- training time: " in card.text


def accuracies(output) -> tuple[dict[str, float], str]:
    """Those of the card's front matter, and its text."""
    card = ModelCard.load(output / "README.md")
    return {result.dataset_name: result.metric_value for result in card.data.eval_results or ()}, card.text


def of_tasks(metrics, prefix="eval_") -> dict[str, float]:
    return {task: metrics[f"{prefix}accuracy/{task}"] for task in prompted.TASKS}


def test_an_evaluation_of_other_weights_is_left_out(trained):
    run, output = trained
    run.evaluate()
    run.train()  # what was evaluated is gone
    run.save_model()
    assert accuracies(output)[0] == {}
    metrics = run.evaluate()
    run.state.global_step += 1  # as after another step
    run.save_model()
    found, text = accuracies(output)
    assert found == {} and "3 steps" in text
    run.state.global_step -= 1
    run.save_model()
    assert accuracies(output)[0] == of_tasks(metrics)


def test_the_best_weights_have_their_own_accuracies(tmp_path):
    """Loaded at the end of training, they are of an earlier step than the last evaluation."""

    class FirstIsBest(TrainerCallback):
        """What the scores are does not matter here: a distinct one a step, and the first wins."""

        def on_evaluate(self, args, state, control, metrics, **_):  # noqa: ARG002
            scores = {f"eval_accuracy/{task}": 1 - state.global_step / 10 for task in prompted.TASKS}
            metrics.update(scores)
            state.log_history[-1].update(scores)

    saving = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_accuracy/photo", "greater_is_better": True}
    run = small_run.trainer(tmp_path, callbacks=[FirstIsBest()], **saving, **best)
    run.train()
    assert (run.state.best_global_step, run.state.global_step) == (2, 4)
    run.save_model()
    found, text = accuracies(tmp_path)
    assert found == dict.fromkeys(prompted.TASKS, 0.8) and "2 steps" in text
    metrics = run.evaluate(small_run.pictures("test"), metric_key_prefix="test")  # of the loaded weights, at step 4
    run.save_model()
    found, text = accuracies(tmp_path)
    assert found == of_tasks(metrics, "test_")
    assert "Accuracy on `test`" in text and "2 steps" in text
    run.args.load_best_model_at_end = False
    run.train()
    run.save_model()
    found, text = accuracies(tmp_path)
    assert found == dict.fromkeys(prompted.TASKS, 0.6) and "4 steps" in text


def test_settings_name_the_adapters_own_and_the_task_that_learns_alone(tmp_path):
    model = prompted.prompted_clip(torch.float32, intervention_shared=False, towers="both", init_seed=7)
    model.train_only("photo")
    run = small_run.trainer(tmp_path, model=model, sizes={"train": (8, 0, 0)}, learn_scheduler=False)
    run.create_model_card()
    lines = (tmp_path / "README.md").read_text().splitlines()
    for line in ("| `trained_task` | photo |", "| `num_shared_tokens` | 3 |", "| `init_seed` | 7 |"):
        assert line in lines
    assert not any(line.startswith(("| `task_type`", "| `peft_type`", "| `tasks`", "| `base_model")) for line in lines)


def test_a_card_that_fails_does_not_end_the_run(untrained, monkeypatch):
    run, output = untrained
    monkeypatch.setattr(ModelCard, "from_template", None)
    run.save_model()
    assert (output / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "options, arguments, flags",
    [
        ({"hub_private_repo": True}, (None, None), ["--private"]),
        ({"hub_private_repo": True, "hub_revision": "v1"}, (None, False), ["--revision", "v1"]),
    ],
)
def test_the_command_to_push_later_keeps_what_was_asked(tmp_path, options, arguments, flags):
    command = shlex.split(small_run.trainer(tmp_path, **options)._how_to_push_later(*arguments).split(" with: ")[1])
    assert command[:5] == ["hf", "upload", tmp_path.name, str(tmp_path), "."]
    assert command[len(command) - len(flags) :] == flags and command.count("--private") == flags.count("--private")


def test_results_and_figures_of_this_evaluation_alone(untrained):
    run, output = untrained
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


def test_somebody_elses_results_are_passed_over(untrained):
    run, output = untrained
    run.evaluate()
    (output / "results.md").write_text("mine")
    broken = ("no JSON", "[1]", "{}", '{"accuracy": 1}', '{"tasks": {"photo"', '{"tasks": {"photo": 1}}', "[" * 10**5)
    for content in broken:
        (output / "results.json").write_text(content)
        run.create_model_card()
        assert "mine" not in (output / "README.md").read_text()
    (output / "results.json").unlink()
    (output / "results.json").mkdir()
    run.create_model_card()
    assert "mine" not in (output / "README.md").read_text()


# The training images of the small run, as a manifest of several benchmarks would name them.
IMAGES = {
    task: {"train": [f"{task}/{number}.png" for number in range(size)], "validation": [], "dev": [], "test": []}
    for task, size in zip(prompted.TASKS, small_run.SIZES["train"], strict=True)
}
FOOD = "ethz/food101@e06acf2a88084f04bce4d4a525165d68e0a36c38"


def training_section(run, output, **manifest) -> str:
    content = {"task_set": "folder", "seed": 9, "options": {}, "tasks": IMAGES, **manifest}
    (output / "manifest.json").write_text(json.dumps(content))
    run.create_model_card()
    return (output / "README.md").read_text().split("## Training")[1].split("## Evaluation")[0]


@pytest.mark.parametrize(
    ("task_set", "options", "rows"),
    [
        (
            "food101,office_home",
            {"sources": {"food101": FOOD, "office_home": "/home/me/office_home"}},
            [
                f"| food101 | `{FOOD}` on the Hub | up to 5 of each class |",
                "| office_home | the folder `office_home` | 10 % of each class |",
            ],
        ),
        ("folder", {"train_fraction": 0.125}, ["| folder | folders of images | 12.5 % of each class |"]),
        (
            "shapes",
            {"images_per_class": {"train": 16}},
            ["| shapes | drawn by `jscpt_peft` | up to 16 of each class |"],
        ),
    ],
    ids=["benchmarks", "folder", "shapes"],
)
def test_the_data_are_those_of_the_manifest(untrained, task_set, options, rows):
    text = training_section(*untrained, task_set=task_set, options=options)
    assert f"on the task set `{task_set}`, drawn with seed 9:" in text
    assert re.findall(r"^\| .* \|$", text.split("The settings:")[0], re.MULTILINE)[1:] == rows
    assert "/home/me" not in text


@pytest.mark.parametrize(
    "manifest",
    [
        {"tasks": {**IMAGES, "photo": {**IMAGES["photo"], "train": ["one.png"]}}},
        {"tasks": {task: {"test": []} for task in IMAGES}},
        {"task_set": ["folder"]},
        {"options": {"train_fraction": "much"}},
    ],
    ids=str,
)
def test_another_runs_or_somebody_elses_manifest_is_passed_over(untrained, manifest):
    assert "task set" not in training_section(*untrained, **manifest)
    assert "task set" in training_section(*untrained)


def test_an_edited_card_stays(untrained):
    run, output = untrained
    run.save_model()
    path = output / "README.md"
    path.write_text(path.read_text().replace("## Limits", "## What I know of its limits"))
    edited = path.read_text()
    run.create_model_card(license="mit")
    run.save_model()
    assert path.read_text() == edited
