from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch

from jscpt_peft.evaluation import SchedulerHistory, history_arrays, read_history
from jscpt_peft.evaluation.history import mean_of_others

TASKS = ["art", "Zürich & more"]
OMEGA = {"step_size": 0.5, "dev_loss": 1.0, "neumann_terms": 3, "graph_bytes": 5_000_000_000}


def row(step, **changed):
    values = {
        "epoch": step / 10,
        "loss": [1.0 / step, math.nan],
        "weight": [1.0, 0.0],
        "nonfinite": [False, step == 3],
        "affinity": [[0.0, 0.1 * step], [-0.2, 0.0]],
        "gradient_norm": 3.0,
        "scheduler": OMEGA if step % 2 == 0 else None,
    }
    return {"step": step, **values, **changed}


def write(path, steps, tasks=TASKS, **changed):
    history = SchedulerHistory(path, tasks)
    for step in steps:
        history.append(row(step, **changed))
    return path


def steps_of(path):
    return [entry["step"] for entry in read_history(path)]


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def test_what_is_appended_is_read_at_once_with_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "new folder" / "history.jsonl"
    for step in (1, 2, 3):
        rows = read_history(write(path, [step]))
        assert len(rows) == step
        assert rows[-1] == {**row(step), "loss": [1 / step, None], "tasks": TASKS}
    assert [entry["step"] for entry in read_history(path, columns=["nonfinite"])] == [1, 2, 3]
    assert read_history(path, columns=["nonfinite"])[2] == {"tasks": TASKS, "step": 3, "nonfinite": [False, True]}


def test_rows_are_strict_json_of_any_columns_lists_arrays_or_tensors(tmp_path):
    values = {"loss": torch.tensor([1.5, math.inf]), "weight": np.ones(2, dtype=np.float32), "own": [1, 2]}
    path = tmp_path / "history.jsonl"
    SchedulerHistory(path, TASKS).append({"step": 1, "gradient_norm": -math.inf, "nonfinite": [True, False], **values})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text("utf-8"), parse_constant=refuse) == {
        "tasks": TASKS,
        "step": 1,
        "gradient_norm": None,
        "nonfinite": [True, False],
        "loss": [1.5, None],
        "weight": [1.0, 1.0],
        "own": [1, 2],
    }


@pytest.mark.parametrize(
    "changed", [{"loss": [1.0]}, {"affinity": np.ones((2, 3))}, {"scheduler": {"loss": [1.0] * 3}}]
)
def test_values_of_another_shape_are_refused_and_nothing_is_written(tmp_path, changed):
    path = write(tmp_path / "history.jsonl", [1])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"`(loss|affinity|scheduler\.loss)` has shape .*the history has 2 tasks"):
        write(path, [2], **changed)
    assert path.read_bytes() == before


# ---- going back and going on ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("checkpoint", [1, 4, 6])
@pytest.mark.parametrize("cut", [0, 1, 2, 40])
def test_a_killed_run_that_goes_on_has_the_history_of_one_that_was_never_stopped(tmp_path, checkpoint, cut):
    whole = read_history(write(tmp_path / "whole.jsonl", range(1, 9)))
    path = write(tmp_path / "history.jsonl", range(1, 8), gradient_norm=9.0)
    kept = path.read_bytes()[: path.stat().st_size - cut]
    path.write_bytes(kept)
    assert steps_of(path) == list(range(1, 8 if cut < 2 else 7))  # but for the line break, the last row is whole
    write(path, range(checkpoint + 1, 9))
    assert path.read_bytes().startswith(kept)  # nothing is rewritten
    expected = [{**entry, "gradient_norm": 9.0 if entry["step"] <= checkpoint else 3.0} for entry in whole]
    assert read_history(path) == expected


@pytest.mark.filterwarnings("error")
def test_going_back_replaces_all_that_was_logged_after_it(tmp_path):
    """Also what the new course has not come to again, and what an earlier run left in the file."""
    path = write(tmp_path / "history.jsonl", range(1, 9))
    assert steps_of(write(path, [4, 5])) == [1, 2, 3, 4, 5]
    assert steps_of(write(path, [1], tasks=["a", "b"])) == [1]
    assert len(lines_of(path)) == 1  # a run from the start has its own file


@pytest.mark.parametrize(
    "line",
    [
        b"{oops}\n",
        b'{"step": 2,\n',
        b"[1, 2]\n",
        b'{"tasks": ["art", "b"], "step": "2"}\n',
        b'{"tasks": ["a", "b"], "step": 2}\n',
        json.dumps({"tasks": TASKS, "step": 2, "loss": [1.0]}).encode() + b"\n",
        json.dumps({"tasks": TASKS, "step": 2, "loss": ["a", "b"]}).encode() + b"\n",
    ],
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_line_is_left_out_and_named(tmp_path, line, number):
    path = write(tmp_path / "history.jsonl", range(1, 4))
    lines = lines_of(path)
    lines[number - 1] = line
    path.write_bytes(b"".join(lines))
    if number == 3 and b'["a", "b"], "step": 2}' in line:
        return  # the last row says whose history it is
    with pytest.warns(UserWarning, match=rf"history\.jsonl: line {number} is not a row of this history"):
        assert steps_of(path) == [step for step in (1, 2, 3) if step != number]
    with warnings.catch_warnings():  # a run that goes on from before it writes it anew
        warnings.simplefilter("error")
        if number > 1:
            assert steps_of(write(path, range(number, 5))) == [1, 2, 3, 4]


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_history(tmp_path / "missing.jsonl")


# ---- as a table -----------------------------------------------------------------------------------------------------


def test_arrays_stack_the_columns_that_all_rows_have(tmp_path):
    path = write(tmp_path / "history.jsonl", range(1, 5))
    write(path, [5], own=1.0)
    arrays = history_arrays(read_history(path))
    assert arrays["step"].tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(arrays["loss"], [[1 / step, math.nan] for step in range(1, 6)])
    assert arrays["affinity"].shape == (5, 2, 2)
    assert arrays["affinity"][2].tolist() == row(3)["affinity"]
    np.testing.assert_allclose(arrays["affinity_mean"], [[-0.2, 0.1 * step] for step in range(1, 6)])
    assert arrays["scheduler_step"].tolist() == [False, True, False, True, False]
    assert arrays["nonfinite"].tolist() == [[False, step == 3] for step in range(1, 6)]
    assert "own" not in arrays and "tasks" not in arrays
    with pytest.raises(ValueError, match="`rows` is empty"):
        history_arrays([])


def test_of_many_tasks_rows_hold_means_and_grow_linearly(tmp_path):
    sizes = {}
    for count in (32, 33, 66):
        names = [f"task {number}" for number in range(count)]
        values = np.random.default_rng(count).uniform(-1, 1, (count, count))
        values[3] = values[:, 3] = math.nan
        path = tmp_path / f"{count}.jsonl"
        SchedulerHistory(path, names).append({"step": 1, "affinity": values, "gradient_cosine": values})
        sizes[count] = path.stat().st_size
        (found,) = read_history(path)
        arrays = history_arrays([found])
        assert ("affinity" in found) == (count == 32)
        for name in ("affinity_mean", "gradient_cosine_mean"):
            means = [
                np.nanmean([values[j, i] for j in range(count) if j != i]) if i != 3 else math.nan
                for i in range(count)
            ]
            np.testing.assert_allclose(arrays[name][0], means)
    assert sizes[66] < 2.2 * sizes[33] < sizes[32]
    np.testing.assert_array_equal(mean_of_others([[math.nan, math.nan], [0.5, math.nan]]), [0.5, math.nan])
