from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from jscpt_peft.evaluation import SchedulerHistory, history_arrays, read_history

TASKS = ["art", "Zürich & more"]
OMEGA = {"step_size": 0.5, "hypergradient_norm": 2.0, "dev_loss": 1.0, "neumann_terms": 3}


def row(step, **changed):
    values = {
        "epoch": step / 10,
        "loss": [1.0 / step, math.nan],
        "causal_effect": [0.7, math.nan],
        "weight": [1.25, 0.75],
        "alpha": [1.0, 1.0],
        "beta": [1.0, 1.0],
        "affinity": [[0.0, 0.1 * step], [-0.2, 0.0]],
        "gradient_cosine": [[1.0, 0.5], [0.5, 1.0]],
        "gradient_norm": 3.0,
        "scheduler": OMEGA if step % 2 == 0 else None,
    }
    return {"step": step, **values, **changed}


def write(path, steps, resume_step=0):
    with SchedulerHistory(path, TASKS, resume_step) as history:
        for step in steps:
            history.append(**row(step))
    return path


def test_what_is_written_is_read_with_null_for_what_is_not_finite(tmp_path):
    rows = read_history(write(tmp_path / "new folder" / "history.jsonl", range(1, 4)))
    assert [entry["step"] for entry in rows] == [1, 2, 3]
    assert rows[0]["loss"] == [1.0, None]
    assert rows[1] == {**row(2), "loss": [0.5, None], "causal_effect": [0.7, None], "tasks": TASKS}
    assert rows[2]["scheduler"] is None


def test_rows_are_strict_json_with_one_schema(tmp_path):
    path = tmp_path / "history.jsonl"
    with SchedulerHistory(path, TASKS) as history:
        history.append(**row(1, epoch=0, loss=[1, 2], gradient_norm=math.inf))
        history.append(**row(2, loss=torch.tensor([1.5, 2.5]), affinity=np.zeros((2, 2), dtype=np.float32)))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines())
    assert list(first) == list(second)
    assert first["gradient_norm"] is None
    # A table's column has one type: 0 would make it an integer column until the first 0.1.
    assert type(first["epoch"]) is float
    assert [type(value) for value in first["loss"]] == [float, float]
    assert second["loss"] == [1.5, 2.5]


def test_every_row_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    history = SchedulerHistory(tmp_path / "history.jsonl", TASKS)
    for step in (1, 2):
        history.append(**row(step))
        assert len(read_history(history.path)) == step
    history.close()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": [1.0]}, r"`loss` has shape \(1,\): pass \(2,\)"),
        ({"affinity": [1.0, 2.0]}, r"`affinity` has shape \(2,\): pass \(2, 2\)"),
        ({"gradient_norm": [1.0]}, "`gradient_norm`"),
        ({"scheduler": {"step_size": 1.0}}, "`scheduler` has the keys"),
    ],
)
def test_wrong_shapes_are_refused_and_nothing_is_written(tmp_path, changed, message):
    with SchedulerHistory(tmp_path / "history.jsonl", TASKS) as history, pytest.raises(ValueError, match=message):
        history.append(**row(1, **changed))
    assert read_history(tmp_path / "history.jsonl") == []


def test_resuming_keeps_the_rows_up_to_the_checkpoint(tmp_path):
    whole = write(tmp_path / "whole.jsonl", range(1, 9)).read_bytes()
    path = write(tmp_path / "history.jsonl", range(1, 7))
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote step 6; the checkpoint is of step 4
    with pytest.warns(UserWarning, match=r"last line \(6\) breaks off"):
        write(path, range(5, 9), resume_step=4)
    assert path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".new")] == []
    assert len(read_history(write(path, [1]))) == 1  # without resuming a run starts its own file


def test_resuming_with_other_tasks_is_refused_and_keeps_the_file(tmp_path):
    path = write(tmp_path / "history.jsonl", [1, 2])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"`tasks` is \['art', 'sketch'\]"):
        SchedulerHistory(path, ["art", "sketch"], resume_step=1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_broken_off_last_line_is_left_out_with_a_warning(tmp_path, cut):
    path = write(tmp_path / "history.jsonl", range(1, 4))
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    if cut == 1:  # only the line break is missing: the row is whole
        assert len(read_history(path)) == 3
    else:
        with pytest.warns(UserWarning, match="history.jsonl"):
            assert [entry["step"] for entry in read_history(path)] == [1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2,', r"history.jsonl, line 2 is no JSON"),
        ('{"step": 2}', r"line 2 is no row of a scheduler history: it lacks \['tasks'"),
        ("[1, 2]", "line 2 is no row"),
        (json.dumps({**row(2, loss=[1.0], causal_effect=[1.0, 1.0]), "tasks": TASKS}), r"line 2: `loss` is \[1.0\]"),
        (json.dumps({**row(2, loss=None, causal_effect=None), "tasks": TASKS}), "line 2: `loss` is None"),
        (json.dumps({**row(2, loss=[1, 1], causal_effect=[1, 1]), "tasks": ["x", "y"]}), "line 2 has the tasks"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "history.jsonl", range(1, 4))
    lines = path.read_text("utf-8").splitlines()
    lines[1] = line
    path.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(ValueError, match=message):
        read_history(path)


def test_a_damaged_last_line_that_was_finished_is_an_error(tmp_path):
    path = write(tmp_path / "history.jsonl", [1])
    path.write_text(path.read_text("utf-8") + "{oops}\n", "utf-8")
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read_history(path)


def test_arrays_stack_the_rows(tmp_path):
    arrays = history_arrays(read_history(write(tmp_path / "history.jsonl", range(1, 5))))
    assert arrays["step"].tolist() == [1, 2, 3, 4]
    assert arrays["loss"][:, 0].tolist() == [1, 1 / 2, 1 / 3, 1 / 4]
    assert np.isnan(arrays["loss"][:, 1]).all()
    assert arrays["affinity"].shape == (4, 2, 2)
    assert arrays["affinity"][2].tolist() == row(3)["affinity"]
    assert arrays["scheduler_step"].tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="`rows` is empty"):
        history_arrays([])


def test_pandas_reads_the_file_as_a_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_json(write(tmp_path / "history.jsonl", range(1, 5)), lines=True)
    assert table["step"].tolist() == [1, 2, 3, 4]
    assert table["epoch"].dtype == float
    assert table["loss"][1] == [0.5, None]
    assert table["scheduler"][1] == OMEGA
    assert table["scheduler"][0] is None


@pytest.mark.parametrize(("steps", "updates"), [(range(1, 5), [None, OMEGA, None, OMEGA]), ([1, 3], [None, None])])
def test_datasets_reads_the_file_as_a_table(tmp_path, steps, updates):
    import datasets

    path = write(tmp_path / "history.jsonl", steps)
    table = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["step"][:] == list(steps)
    assert table["scheduler"][:] == updates
    assert table[0]["tasks"] == TASKS
    assert table[0]["loss"] == [1.0, None]
    assert table.features["affinity"].feature.feature.dtype == "float64"
