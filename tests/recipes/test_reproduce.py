"""`recipes/reproduce.py` on a grid that takes seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import fork_server
import measured_run
import numpy as np
import pandas as pd
import pytest
import reproduce
import torch
from base_model import load_base
from datasets import Dataset
from kept_features import features_file, keep_features
from measured_run import parsed
from outside import OutsideTrainer
from paths import ROOT, TINY_CLIP
from recipe_runs import fails
from reproduced_figures import draw_runs
from reproduced_results import write_tables
from reproduced_tables import JOINT
from task_data import DataArguments, make_datasets

from jscpt_peft.choices import markdown
from jscpt_peft.data import SPLITS, load_task_set
from jscpt_peft.evaluation import SchedulerHistory
from jscpt_peft.training import JSCPTTrainer

JSCPT, COOP = "jscpt --num_shared_tokens 2 --num_task_tokens 2", "coop --single_task --num_shared_tokens 1"
METHODS = ("zero_shot", JSCPT, COOP)
QUICK = ["--use_cpu", "--max_steps", "2", "--lower_steps", "2", "--per_device_train_batch_size", "3"]


def command(images, output, *more):
    grid = ["--methods", *METHODS, "--reference", JSCPT, "--processes", "1"]
    grid += ["--seeds", "1", "2", "--factors", "1", "30"]
    data = ["--task_set", "folder", "--data_root", str(images)]
    return ["--table", "icons", "--settings", "clean", *grid, "--output_dir", str(output), *data, *QUICK, *more]


def results(output) -> pd.DataFrame:
    return pd.read_parquet(output / "results.parquet")


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "out"
    reproduce.main(command(images, output))
    return output


def test_a_row_for_each_run_and_task(made):
    found = results(made)
    assert len(found) == 3 * 2 * 2 and set(found["split"]) == {"test"}
    assert set(found["task"]) == {"my photos", "scans"} and set(found["method"]) == set(METHODS)
    for row in found.itertuples():
        assert row.accuracy == pytest.approx(row.right.count("1") / len(row.right))
    costs = found.groupby("method")["trainable_parameters"].first()
    assert costs["zero_shot"] == 0 < costs[COOP] < costs[JSCPT]
    table = (made / "results.md").read_text()
    assert f"| {JSCPT} |" in table and f"| minus {JSCPT} | points (95 % interval) |" in table


COSTS = {"steps": 4, "train_seconds": 2.0, "trainable_parameters": 7, "images": "same", "worst_group": None}


def test_means_of_several_parts_stand_first(tmp_path):
    def done(setting, method, seed, right):
        found = {"setting": setting, "method": method, "seed": seed, "split": "test", **COSTS}
        found |= {"words": [], "learning_rate": 0.1}
        found |= {"right": {"a": right}, "accuracy": {"a": right.count("1") / 4}}
        return SimpleNamespace(result=lambda _: found)

    one = [done("clean", "jscpt", seed, right) for seed, right in enumerate(["1110", "1100"])]
    other = [done("clean", "coop", seed, "1000") for seed in range(2)]
    write_tables("icons", "jscpt", tmp_path, [*one, *other, done("biased", "coop", 0, "1111")])
    text = (tmp_path / "results.md").read_text()
    first, second = text.partition("\n## clean")[::2]
    assert "| jscpt | **62.5 ± 17.7** | n/a |" in first and "| coop | <u>25.0 ± 0.0</u> | 100.0 |" in first
    assert "| minus jscpt | clean | biased |" in first and "| coop | -37.5 (-87.5 to +0.0) |  |" in first
    assert "| coop | -37.5 (-87.5 to +0.0) |" in second and "## biased" in second


def test_the_learning_rate_is_the_best_on_validation_images_and_tests_are_seen_once(made):
    everything = [pd.read_json(path, typ="series") for path in made.glob("runs/*/result.json")]
    searches = [each for each in everything if each["split"] == "validation"]
    assert len(everything) - len(searches) == 3 * 2 and len(searches) == 2 * 2
    for method, rate in results(made).groupby("method")["learning_rate"].first().items():
        tried = {
            each["learning_rate"]: sum(each["accuracy"].values()) for each in searches if each["method"] == method
        }
        assert tried.get(rate, 0) == max(tried.values(), default=0)


def test_a_run_is_what_train_makes_of_its_words_and_its_rate_stands_over_that_of_its_method(
    images, tmp_path, monkeypatch
):
    """Else a method with a learning rate of its own would be searched at this one alone."""
    groups, seen = {"my photos": "a", "scans": "b"}, []
    (tmp_path / "groups.yaml").write_text(json.dumps(groups))
    monkeypatch.setattr(measured_run, "make_trainer", lambda *made: seen.extend(made) or 1 / 0)
    words = ("--task_set", "folder", "--data_root", str(images), "--use_cpu")
    method = f"mmap --groups {tmp_path / 'groups.yaml'} --templates ensemble --learning_rate 0.5"
    with pytest.raises(ZeroDivisionError):
        measured_run.measure(measured_run.Run("clean", method, words, 0.25, 3, "validation"), tmp_path)
    model, _, training = seen
    config = model.active_jscpt_config
    assert config.groups == groups and len(config.class_template["scans"]) == 8
    assert (training.learning_rate, training.seed) == (0.25, 3)


def test_what_is_done_is_not_done_again(made, images, monkeypatch):
    def done_again(run, _output):
        raise AssertionError(run)

    before = results(made)
    monkeypatch.setattr(reproduce, "measure", done_again)
    reproduce.main(command(images, made))
    pd.testing.assert_frame_equal(results(made), before)
    with pytest.raises(AssertionError):  # another argument makes other runs
        reproduce.main(command(images, made, "--weight_decay", "0.1"))


def test_an_interrupted_table_goes_on_to_the_same_numbers(made, images, tmp_path, monkeypatch, capsys):
    measure, calls = reproduce.measure, []
    output = shutil.copytree(made, tmp_path / "out")
    for folder in sorted((output / "runs").iterdir())[::4]:  # as if these three had not come yet
        shutil.rmtree(folder)

    def interrupted(run, output):
        calls.extend([run] if run.result(output) is None else [])
        if len(calls) == 2:
            run.folder(output).mkdir(parents=True)
            (run.folder(output) / "left over").touch()
            raise KeyboardInterrupt
        measure(run, output)

    monkeypatch.setattr(reproduce, "measure", interrupted)
    assert f"what is done is in {output}, and the same command goes on" in fails(
        capsys, reproduce.main, *command(images, output)
    )
    reproduce.main(command(images, output))
    assert len(calls) == 4
    measured = ["train_seconds"]
    pd.testing.assert_frame_equal(results(output).drop(columns=measured), results(made).drop(columns=measured))


PROGRAM = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
import reproduce

class Endless:
    def result(self, output):
        if multiprocessing.parent_process() is not None:
            Path("child").write_text(str(os.getpid()))
            os.rename("child", "started")
            time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
    with reproduce.cli_errors(), reproduce.run_all(2, Path("out")) as do:
        do([Endless()], "runs")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux' own")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_table_ends_its_runs(tmp_path, number):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "recipes")))}
    command, log = [sys.executable, str(tmp_path / "program.py")], tmp_path / "log"
    process = fork_server.start(command, log, env=environment, cwd=tmp_path)
    started = tmp_path / "started"
    assert within(120, started.exists) and process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGTERM else 130)
    assert within(30, lambda: not Path("/proc", started.read_text()).exists())
    said = log.read_text()
    assert "Traceback" not in said and ("Interrupted; what is done is in out" in said) == (number == signal.SIGINT)


def within(seconds, is_so) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--settings", "wet"], "wet"),
        (["--methods", "jspct"], "jscpt"),
        (["--stpes", "3"], "--stpes"),
        (["--seeds", "1", "1"], "`seeds` holds one of [1, 1] twice"),
        (["--seeds", "-1"], "`seeds` must be at least 0, got -1"),
        (["--factors", "nan"], "`factors` must be a finite number, got nan"),
        (["--processes", "0"], "`processes` must be at least 1"),
        (["--methods", " "], "`methods` is ' ': name something"),
        (["--reference", "coop"], "`reference` must be one of 'zero_shot'"),
    ],
)
def test_wrong_words_are_told_before_anything_runs(images, tmp_path, capsys, words, message):
    assert message in fails(capsys, reproduce.main, *command(images, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_told_and_the_others_go_on(images, tmp_path, monkeypatch):
    """Where another rate is sound that one is chosen; a method of which a seed diverges has no mean."""
    doomed = f"{COOP} --logging_steps 7"
    own = parsed(["--task_set", "folder", "--data_root", str(images), "--output_dir", "x"], COOP)[2].learning_rate

    def diverging(self):
        if self.args.learning_rate > own or (self.args.logging_steps == 7 and self.args.seed == 2):
            raise FloatingPointError("The loss was not finite")

    monkeypatch.setattr(JSCPTTrainer, "train", diverging)
    reproduce.main(command(images, tmp_path, "--methods", COOP, doomed, "--reference", COOP))
    assert list(results(tmp_path).groupby("method")["seed"].unique().map(list).items()) == [(COOP, [1, 2])]
    assert set(results(tmp_path)["learning_rate"]) == {own}
    tables, _, told = (tmp_path / "results.md").read_text().partition("## Runs that diverged")
    assert f"| {COOP} |" in tables and doomed not in tables
    for method in (COOP, doomed):
        assert f"| clean | {markdown(method)} | validation | 0 | {30 * own} | The loss was not finite |" in told
    assert f"| clean | {markdown(doomed)} | test | 2 | {own} | The loss was not finite |" in told


def test_a_table_of_which_every_run_diverges_says_so(images, tmp_path, monkeypatch):
    def diverging(_):
        raise FloatingPointError("no good")

    monkeypatch.setattr(JSCPTTrainer, "train", diverging)
    reproduce.main(command(images, tmp_path, "--methods", COOP, "--reference", COOP, "--seeds", "1"))
    assert (tmp_path / "results.md").read_text().count("no good") == 2 + 1
    assert not (tmp_path / "results.parquet").exists()


def test_methods_from_elsewhere_diverge_alone_too(images, tmp_path, monkeypatch):
    """They train on to NaN, which their evaluation finds."""

    def broken(self):
        self.model.weight.data.fill_(torch.nan)

    monkeypatch.setattr(OutsideTrainer, "train", broken)
    words = ["--methods", "linear_probe", "zero_shot", "--reference", "zero_shot", "--factors", "1", "--seeds", "1"]
    reproduce.main(command(images, tmp_path, *words))
    tables, _, told = (tmp_path / "results.md").read_text().partition("## Runs that diverged")
    assert "| zero_shot |" in tables and "linear_probe" not in tables and told.count("| test |") == 1
    assert "the weights that have learned, or the images, are not finite" in told


def test_learning_rates_may_come_from_one_part_of_the_table(tmp_path, monkeypatch):
    measured = []

    def measure(run, output):
        measured.append(run)
        accuracy = 0.9 if run.learning_rate == 0.03 else 0.5
        result = {**asdict(run), **COSTS, "accuracy": {"flat": accuracy}, "right": {"flat": "10"}}
        run.folder(output).mkdir(parents=True)
        (run.folder(output) / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(reproduce, "measure", measure)
    words = "--table shapes --settings clean biased --methods jscpt coop --rates_from clean --seeds 1 2 --processes 1"
    reproduce.main([*words.split(), "--use_cpu", "--output_dir", str(tmp_path / "out")])
    searches, finals = ([run for run in measured if run.split == split] for split in ("validation", "test"))
    assert len(searches) == 2 * 3 and {run.setting for run in searches} == {"clean"}
    assert len(finals) == 2 * 2 * 2 and {run.learning_rate for run in finals} == {0.03}
    assert all(("--spurious_strength" in run.words) == (run.setting == "biased") for run in finals)


@pytest.fixture(scope="module")
def joint(images, tmp_path_factory):
    """Base and new classes of plain joint training."""
    output = tmp_path_factory.mktemp("joint")
    words = ["--split", "base_to_new", "--num_shared_tokens", "2", "--num_task_tokens", "2"]
    words += ["--methods", JOINT, "--reference", JOINT, "--seeds", "1", "--factors", "1"]
    reproduce.main(command(images, output, *words))
    return output


def test_base_and_new_classes_are_columns_of_each_task(joint):
    found = results(joint)
    assert list(found["task"]) == [f"{task}, {kind}" for task in ("my photos", "scans") for kind in ("base", "new")]
    assert found["accuracy"].tolist() == [right.count("1") / len(right) for right in found["right"]]


def test_kept_features_answer_as_images_do(images, tmp_path):
    still = "--num_shared_tokens 0 --num_task_tokens 0 --class_residual both"
    methods = [f"jscpt {still}", "linear_probe"]
    answers = []
    for views in ("0", "2"):
        words = ["--learning_rate", "0", "--kept_views", views, "--methods", *methods, "--reference", "linear_probe"]
        reproduce.main(command(images, tmp_path / views, *words, "--seeds", "1", "--factors", "1"))
        answers.append(results(tmp_path / views)["right"])
    pd.testing.assert_series_equal(*answers)
    assert len(list((tmp_path / "2" / "features").glob("*.pt"))) == 1


def test_features_are_computed_once_however_many_ask_for_them(images, tmp_path, monkeypatch):
    task_set = load_task_set("folder", images)
    _, clip, processor = load_base(str(TINY_CLIP))
    computed, features = [], clip.get_image_features
    monkeypatch.setattr(clip, "get_image_features", lambda **batch: computed.append(1) or features(**batch))

    def keep(_) -> int:
        datasets = make_datasets(task_set, processor, DataArguments("folder"), 0)
        keep_features(clip, task_set, datasets, 2, tmp_path / "kept.pt")
        return len(computed)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(keep, range(2))
    assert first == second > 0


def test_features_of_images_of_the_same_name_are_told_apart_by_task(images, tmp_path):
    """On the Hub every data set has an image `train/17`."""

    def numbered(task):
        rows = {split: [*task.split(split)] for split in SPLITS}
        named = {
            split: Dataset.from_list([{**row, "key": f"{split}/{number}"} for number, row in enumerate(each)])
            for split, each in rows.items()
        }
        return replace(task, **named)

    task_set = load_task_set("folder", images)
    task_set = replace(task_set, tasks=tuple(map(numbered, task_set)))
    _, clip, processor = load_base(str(TINY_CLIP))
    datasets = make_datasets(task_set, processor, DataArguments("folder"), 0)
    test = keep_features(clip, task_set, datasets, 2, tmp_path / "kept.pt")["test"]
    second = test.task_ids.index(1)
    pairs = [(test[index]["pixel_values"], test[second + index]["pixel_values"]) for index in range(second)]
    assert any(not one.equal(other) for one, other in pairs)


@pytest.mark.parametrize(
    "other",
    [{"task_set": "icons"}, {"data_root": "elsewhere"}, {"spurious_strength": 0.9}, {"smallest_crop": 0.5}],
)
def test_features_of_images_that_look_different_are_apart(other):
    """A drawn image's name says nothing of its background, nor a file's name what folder it is in."""
    one, two = (features_file(Path("kept"), "base", DataArguments(**each), 8) for each in ({}, other))
    assert one != two
    assert one == features_file(Path("kept"), "base", DataArguments(label_noise=0.5, shots=2, only_tasks="flat"), 8)


@pytest.mark.parametrize(
    ("method", "views"),
    [
        *(("clip_lora", 0), ("vpt", 0), ("jscpt", 0), ("coop", 8), ("linear_probe", 8), ("zero_shot", 8)),
        ("jscpt --num_shared_tokens 0 --num_task_tokens 0", 8),
    ],
)
def test_features_are_kept_where_the_image_encoder_learns_nothing(method, views):
    [run] = reproduce.candidates("clean", method, ("--task_set", "icons"), [1.0], 8)
    assert run.views == views


# ---- figures of the runs --------------------------------------------------------------------------------------------


def figures(output) -> dict[str, str]:
    """What results.md says of each figure of the runs."""
    part = (output / "results.md").read_text().partition("## Figures as in the paper, of seed 1\n\n")[2]
    said = {line.split("`")[1]: line for line in part.splitlines()}
    assert all((output / name).exists() == line.startswith("- `") for name, line in said.items())
    return {name.removeprefix("figures/clean/"): line for name, line in said.items()}


def test_figures_of_what_the_runs_have_recorded_are_drawn_and_others_said(made, joint):
    said = figures(made)
    assert said["prompt_scheduling.png"].endswith(f"(Fig. 4) of `{JSCPT}`")
    assert all("there is no mvlpt, or" in said[name] for name in ("gradient_cosines.png", "losses.png"))
    said = figures(joint)
    assert said["gradient_cosines.png"].endswith(f"(Fig. 1(c)) of `{JOINT}`")
    assert all("there is no jscpt with" in said[name] for name in ("prompt_scheduling.png", "losses.png"))


def test_figures_are_of_mvlpt_if_it_is_there_and_not_of_tasks_that_share_nothing(tmp_path):
    methods = ("mvlpt --single_task", "vpt", JOINT, "jscpt --weighting uw", "mvlpt", "jscpt")
    runs = [measured_run.Run("wrong labels", method, ("--task_set", "icons"), 0.1, 1, "test") for method in methods]
    for run in runs:
        history = SchedulerHistory(run.folder(tmp_path) / "scheduler_history.jsonl", ["flat", "outline"])
        for step in (1, 2):
            row = {"step": step, "epoch": step / 2, "loss": [1.0, 2.0], "weight": [1.0, 1.0]}
            row["gradient_cosine"] = np.zeros((2, 2)) if "--single_task" in run.method else np.full((2, 2), 0.5)
            if run.method.startswith("jscpt") and run.method != JOINT:
                row["weight"] = [1.2, 0.8]
            if run.method == "jscpt":
                row |= {"causal_effect": [0.8, 0.7], "prompt_factor": [0.6, 0.7]}
            history.append(row)
    assert draw_runs(runs, tmp_path).splitlines() == [
        "- `figures/wrong-labels/gradient_cosines.png` (Fig. 1(c)) of `mvlpt`",
        "- `figures/wrong-labels/prompt_scheduling.png` (Fig. 4) of `jscpt`",
        "- `figures/wrong-labels/losses.png` (Fig. 5) of `mvlpt` and `jscpt`",
    ]
    without = [run for run in runs if run.method != "mvlpt"]
    assert f"losses.png` (Fig. 5) of `{JOINT}` and `jscpt`" in draw_runs(without, tmp_path)
    assert "- no `figures/wrong-labels/losses.png` (Fig. 5): there is no mvlpt" in draw_runs(runs[:2], tmp_path)
    assert list((tmp_path / "figures" / "wrong-labels").iterdir()) == []
