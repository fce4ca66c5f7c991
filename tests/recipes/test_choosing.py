"""`--method auto`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reproduce
import train
from choosing import choose
from datasets import ClassLabel, concatenate_datasets
from model_arguments import model_config
from recipe_runs import draw_images, fails

from jscpt_peft.data import SPLITS, load_task_set


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("images"), suffix="png")


def test_tasks_with_common_classes_share_a_residual_and_are_weighed(images):
    settings, reasons = choose(load_task_set("folder", str(images)))
    assert (settings["class_residual"], settings["weighting"]) == ("both", "uw")
    assert "6 classes of which 100% are in several tasks" in reasons[0]


def test_without_common_classes_nothing_is_shared_and_nothing_weighed(images):
    root = load_task_set("folder", str(images))
    one, other = root.tasks
    names = [f"another {name}" for name in other.class_names]
    tables = {split: getattr(other, split).cast_column("label", ClassLabel(names=names)) for split in SPLITS}
    for tasks in ([one], [one, replace(other, class_names=names, **tables)]):
        settings, _ = choose(replace(root, tasks=tasks))
        assert settings["class_residual"] == "task" and not {"weighting", "dev_loss", "task_prior"} & settings.keys()


def test_tasks_of_unequal_size_are_weighed_by_the_papers_scheduler(images):
    root = load_task_set("folder", str(images))
    few, many = root.tasks
    many = replace(many, train=concatenate_datasets([many.train] * 5))
    settings, reasons = choose(replace(root, tasks=[few, many]))
    assert settings["lower_steps"] == settings["scheduler_learning_rate"] == "auto" and settings["weigh_own_steps"]
    assert settings["dev_loss"] == "calibrated" and reasons[-1].startswith("the paper's scheduler")
    assert not {"weighting", "task_scheduling"} & settings.keys()


def test_the_command_line_stands_over_what_is_chosen(images, tmp_path, capsys, monkeypatch):
    runs = []
    monkeypatch.setattr(train, "run", lambda *arguments: runs.append(arguments))
    words = ["--method", "auto", "--task_set", "folder", "--data_root", str(images), "--use_cpu"]
    train.main([*words, "--task_prior", "3", "--output_dir", str(tmp_path / "out")])
    assert "auto: uncertainty weighting" in capsys.readouterr().out
    [(_, model, training)] = runs
    assert (training.weighting, training.weigh_own_steps, training.task_prior) == ("uw", True, 3)
    config = model_config(model, {"photos": ["cat"], "scans": ["cat"]}, "", 0)
    assert (config.method, config.class_residual, config.num_tokens) == ("jscpt", "both", 0)


def test_programs_that_do_not_train_refuse_it(tmp_path, capsys):
    words = ["--table", "icons", "--settings", "clean", "--methods", "auto", "--seeds", "1", "--factors", "1"]
    message = fails(capsys, reproduce.main, *words, "--processes", "1", "--output_dir", str(tmp_path))
    assert "`method` 'auto'" in message and "recipes/train.py" in message
