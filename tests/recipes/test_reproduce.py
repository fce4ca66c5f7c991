"""`recipes/reproduce.py` on a grid that takes seconds."""

from __future__ import annotations

import pandas as pd
import pytest
import reproduce
from recipe_runs import draw_images, fails

JSCPT, COOP = "jscpt --num_shared_tokens 2 --num_task_tokens 2", "coop --single_task --num_shared_tokens 1"
METHODS = ("zero_shot", JSCPT, COOP)
QUICK = ["--use_cpu", "--max_steps", "4", "--lower_steps", "2", "--per_device_train_batch_size", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("images"))


def command(images, output, *more):
    grid = [
        "--methods",
        *METHODS,
        "--seeds",
        "1",
        "2",
        "--factors",
        "1",
        "30",
        "--processes",
        "1",
        "--reference",
        JSCPT,
    ]
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
    assert f"| {JSCPT} |" in table and f"| minus {JSCPT} | points | 95 % interval |" in table


def test_the_learning_rate_is_the_best_on_validation_images_and_tests_are_seen_once(made):
    everything = [pd.read_json(path, typ="series") for path in made.glob("runs/*/result.json")]
    searches = [each for each in everything if each["split"] == "validation"]
    assert len(everything) - len(searches) == 3 * 2 and len(searches) == 2 * 2
    for method, rate in results(made).groupby("method")["learning_rate"].first().items():
        tried = {
            each["learning_rate"]: sum(each["accuracy"].values()) for each in searches if each["method"] == method
        }
        assert tried.get(rate, 0) == max(tried.values(), default=0)


def test_what_is_done_is_not_done_again(made, images, monkeypatch):
    def done_again(run, _output):
        raise AssertionError(run)

    before = results(made)
    monkeypatch.setattr(reproduce, "measure", done_again)
    reproduce.main(command(images, made))
    pd.testing.assert_frame_equal(results(made), before)
    with pytest.raises(AssertionError):  # another argument makes other runs
        reproduce.main(command(images, made, "--weight_decay", "0.1"))


def test_an_interrupted_table_goes_on_to_the_same_numbers(made, images, tmp_path, monkeypatch):
    measure, calls = reproduce.measure, []

    def interrupted(run, output):
        calls.append(run)
        if len(calls) == 3:
            run.folder(output).mkdir(parents=True)
            (run.folder(output) / "left over").touch()
            raise KeyboardInterrupt
        measure(run, output)

    monkeypatch.setattr(reproduce, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(command(images, tmp_path))
    reproduce.main(command(images, tmp_path))
    measured = ["train_seconds"]
    pd.testing.assert_frame_equal(results(tmp_path).drop(columns=measured), results(made).drop(columns=measured))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--settings", "wet"], "wet"),
        (["--methods", "jspct"], "jscpt"),
        (["--stpes", "3"], "--stpes"),
    ],
)
def test_wrong_words_are_told_before_anything_runs(images, tmp_path, capsys, words, message):
    assert message in fails(capsys, reproduce.main, *command(images, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()
