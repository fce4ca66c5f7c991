from __future__ import annotations

import json
import math
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from jscpt_peft.evaluation import SchedulerHistory, history_arrays, history_features, read_history
from jscpt_peft.evaluation.history_table import BETWEEN_TASKS, COLUMNS, PER_TASK

TASKS = ["art", "Zürich & more"]
OMEGA = {
    "step_size": 0.5,
    "hypergradient_norm": 2.0,
    "dev_loss": 1.0,
    "neumann_terms": 3,
    "graph_bytes": 5_000_000_000,
}


def row(step, **changed):
    values = {
        "epoch": step / 10,
        "loss": [1.0 / step, math.nan],
        "causal_effect": [0.7, math.nan],
        "alpha": [1.0, 1.0],
        "beta": [1.0, 1.0],
        "prompt_factor": [0.7, math.nan],
        "task_factor": [0.5, math.nan],
        "weight": [1.0, 0.0],
        "alpha_after": [1.1, 0.9],
        "beta_after": [1.1, 0.9],
        "nonfinite": [False, step == 3],
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
    without = {"causal_effect": [0.7, None], "prompt_factor": [0.7, None], "task_factor": [0.5, None]}
    assert rows[1] == {**row(2), "loss": [0.5, None], **without, "tasks": TASKS}
    assert rows[2]["nonfinite"] == [False, True]
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
        ({"nonfinite": [True]}, r"`nonfinite` has shape \(1,\): pass \(2,\)"),
        ({"nonfinite": [0.0, 1.0]}, r"`nonfinite` is \[0.0, 1.0\]: pass booleans"),
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
    write(path, range(5, 9), resume_step=4)
    assert path.read_bytes() == whole
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["history.jsonl", "whole.jsonl"]
    assert len(read_history(write(path, [1]))) == 1  # without resuming a run starts its own file


def test_resuming_drops_a_row_of_the_checkpoints_own_steps_that_breaks_off(tmp_path):
    path = write(tmp_path / "history.jsonl", range(1, 7))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=r"last line \(6\) breaks off"):
        write(path, [7, 8], resume_step=6)
    assert [entry["step"] for entry in read_history(path)] == [1, 2, 3, 4, 5, 7, 8]


def test_resuming_keeps_lines_as_they_stand(tmp_path):
    """Also a last one that lacks nothing but its break, which the next row must not be written behind."""
    path = write(tmp_path / "history.jsonl", range(1, 4))
    lines = [json.dumps(entry, separators=(",", ":")) for entry in read_history(path)]
    path.write_text("\n".join(lines), "utf-8")
    write(path, [4], resume_step=3)
    assert path.read_text("utf-8").splitlines()[:3] == lines
    assert [entry["step"] for entry in read_history(path)] == [1, 2, 3, 4]


def test_damage_in_what_a_resume_drops_is_none(tmp_path):
    path = write(tmp_path / "history.jsonl", range(1, 7))
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:4], "{oops}\n", *lines[5:]]), "utf-8")
    write(path, [5], resume_step=4)
    assert path.read_text("utf-8").splitlines(keepends=True) == lines[:5]


def test_steps_that_were_not_finite_are_counted_across_a_resume(tmp_path):
    path = tmp_path / "history.jsonl"
    with SchedulerHistory(path, TASKS) as history:
        for step in range(1, 6):
            history.append(**row(step, nonfinite=torch.tensor([step == 5, step in (1, 4)])))
        assert history.nonfinite_steps == [1, 2]
    with SchedulerHistory(path, TASKS, resume_step=3) as history:
        assert history.nonfinite_steps == [0, 1]
        history.append(**row(4, nonfinite=[False, True]))
        assert history.nonfinite_steps == [0, 2]


def test_resuming_with_other_tasks_is_refused_and_keeps_the_file(tmp_path):
    path = write(tmp_path / "history.jsonl", [1, 2])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"`tasks` is \['art', 'sketch'\]"):
        SchedulerHistory(path, ["art", "sketch"], resume_step=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


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


def finite_row(step, **changed):
    """A line without nan, which JSON knows not."""
    known = {name: [1.0, 1.0] for name in ("loss", "causal_effect", "prompt_factor", "task_factor")}
    return json.dumps({**row(1, **known), "step": step, "tasks": TASKS, **changed})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2,', r"history.jsonl, line 2 is no JSON"),
        ('{"step": 2}', r"line 2 is no row of a scheduler history: it lacks \['tasks'"),
        ("[1, 2]", "line 2 is no row"),
        (json.dumps({**row(2, loss=[1.0], causal_effect=[1.0, 1.0]), "tasks": TASKS}), r"line 2: `loss` is \[1.0\]"),
        (json.dumps({**row(2, loss=None, causal_effect=None), "tasks": TASKS}), "line 2: `loss` is None"),
        (json.dumps({**row(2, loss=[1, 1], causal_effect=[1, 1]), "tasks": ["x", "y"]}), "line 2 has the tasks"),
        (finite_row(2, tasks=3), "line 2: `tasks` is 3, no list"),
        (finite_row("2"), "line 2: `step` is '2', no int"),
        (finite_row(2, nonfinite=[None, 1]), r"line 2: `nonfinite` is \[None, 1\], no booleans"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "history.jsonl", range(1, 4))
    lines = path.read_text("utf-8").splitlines()
    lines[1] = line
    path.write_text("\n".join(lines) + "\n", "utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        read_history(path)
    with pytest.raises(ValueError, match=message):
        SchedulerHistory(path, TASKS, resume_step=3)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_last_line_that_was_finished_is_an_error(tmp_path):
    path = write(tmp_path / "history.jsonl", [1])
    path.write_text(path.read_text("utf-8") + "{oops}\n", "utf-8")
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read_history(path)


def test_arrays_stack_the_rows(tmp_path):
    arrays = history_arrays(read_history(write(tmp_path / "history.jsonl", range(1, 5))))
    assert arrays["step"].tolist() == [1, 2, 3, 4]
    assert arrays["loss"][:, 0].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert np.isnan(arrays["loss"][:, 1]).all()
    assert arrays["affinity"].shape == (4, 2, 2)
    assert arrays["affinity"][2].tolist() == row(3)["affinity"]
    assert arrays["scheduler_step"].tolist() == [False, True, False, True]
    assert arrays["nonfinite"].tolist() == [[False, False], [False, False], [False, True], [False, False]]
    assert set(arrays) == set(COLUMNS) - {"tasks", "scheduler"} | {"scheduler_step"}
    with pytest.raises(ValueError, match="`rows` is empty"):
        history_arrays([])


# ---- as a table -----------------------------------------------------------------------------------------------------


def load(path, features=None):
    import datasets

    cache = str(path.with_suffix(".cache"))
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache, features=features)


def test_pandas_reads_the_file_as_a_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_json(write(tmp_path / "history.jsonl", range(1, 5)), lines=True)
    assert list(table.columns) == list(COLUMNS)
    assert table["step"].tolist() == [1, 2, 3, 4]
    assert table["epoch"].dtype == float
    assert table["loss"][1] == [0.5, None]
    assert table["nonfinite"][2] == [False, True]
    assert table["scheduler"][1] == OMEGA
    assert table["scheduler"][0] is None
    # A column of lists becomes an array, and the updates a table of their own.
    assert np.array(table["loss"].tolist(), dtype=float)[:, 0].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    updates = pandas.json_normalize(table["scheduler"].dropna().tolist())
    assert dict(updates.dtypes) == {name: type(value) for name, value in OMEGA.items()}


@pytest.mark.parametrize(
    ("steps", "updates"),
    [(range(1, 5), [None, OMEGA, None, OMEGA]), ([1, 3], [None, None])],
    ids=["updated", "never updated"],
)
@pytest.mark.parametrize("given", [False, True], ids=["types inferred", "types given"])
def test_datasets_reads_the_file_as_a_table(tmp_path, steps, updates, given):
    table = load(write(tmp_path / "history.jsonl", steps), history_features() if given else None)
    assert table["step"][:] == list(steps)
    assert table["scheduler"][:] == updates
    assert table[0]["tasks"] == TASKS
    assert table[0]["loss"] == [1.0, None]
    expected = history_features()
    for name in COLUMNS:
        # Of a column that is null in every row nothing can be inferred.
        assert table.features[name] == expected[name] or (name == "scheduler" and not given and len(steps) == 2), name


def test_types_hold_from_the_first_value_on_whatever_is_null_before(tmp_path):
    path = tmp_path / "history.jsonl"
    nothing = [math.nan] * 2
    names = ("loss", "causal_effect", "prompt_factor", "task_factor")
    unknown = dict.fromkeys(names, nothing) | {"affinity": [nothing] * 2, "gradient_norm": math.nan}
    with SchedulerHistory(path, TASKS) as history:
        for step in range(1, 40):
            history.append(**row(step, **({"scheduler": None} if step < 39 else {"scheduler": OMEGA})))
            history.append(**row(step, **unknown, scheduler=None)) if step < 30 else None
    table = load(path)
    assert table.features == history_features()
    assert table[-1]["scheduler"] == OMEGA
    assert table[1]["loss"] == [None, None]


@pytest.fixture(scope="module")
def long_history(tmp_path_factory):
    """3000 steps of ten tasks, more than `datasets` reads at once (10 MB); Ω is updated near the end only."""
    path = tmp_path_factory.mktemp("long") / "history.jsonl"
    rng = np.random.default_rng(0)
    losses = rng.uniform(0, 3, (3000, 10))
    losses[:50, 0] = np.nan
    with SchedulerHistory(path, [f"task {number}" for number in range(10)]) as history:
        for step, loss in enumerate(losses, start=1):
            matrix = rng.uniform(-1, 1, (10, 10))
            history.append(
                step=step,
                epoch=step / 60,
                **dict.fromkeys(PER_TASK, loss),
                nonfinite=np.isnan(loss),
                **dict.fromkeys(BETWEEN_TASKS, matrix),
                gradient_norm=loss[-1],
                scheduler=OMEGA if step > 2950 else None,
            )
    assert path.stat().st_size > 15_000_000
    return path, losses


def test_a_long_history_is_a_table_with_the_types_given(long_history):
    path, losses = long_history
    table = load(path, history_features())
    assert table.features == history_features()
    np.testing.assert_allclose(np.array(table["loss"][:], dtype=float), losses, rtol=0, atol=1e-14)
    assert [update is not None for update in table["scheduler"][:]] == [step > 2950 for step in range(1, 3001)]


def test_a_long_history_is_a_table_in_pandas(long_history):
    pandas = pytest.importorskip("pandas")
    path, losses = long_history
    table = pandas.read_json(path, lines=True)
    np.testing.assert_allclose(np.array(table["loss"].tolist(), dtype=float), losses, rtol=0, atol=1e-14)
    assert table["scheduler"].notna().sum() == 50
    assert table["gradient_norm"].dtype == table["epoch"].dtype == float
    assert table["step"].dtype == int


def test_a_long_history_that_is_updated_early_needs_no_types(long_history, tmp_path):
    lines = long_history[0].read_text("utf-8").splitlines(keepends=True)
    path = tmp_path / "history.jsonl"
    path.write_text("".join(lines[:20] + lines[-1:] + lines[20:-1]), "utf-8")
    assert load(path).features == history_features()


@pytest.mark.parametrize("kept", [300, 2900])
def test_resuming_a_long_history_needs_the_memory_of_a_row(long_history, tmp_path, kept):
    path = Path(shutil.copy(long_history[0], tmp_path))
    tasks = [f"task {number}" for number in range(10)]
    tracemalloc.start()
    try:
        history = SchedulerHistory(path, tasks, resume_step=kept)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    history.close()
    assert peak < 250_000  # a row takes some 40 kB once it is read, the file above 15 MB
    assert history.nonfinite_steps == [50] + [0] * 9
    with long_history[0].open("rb") as whole, path.open("rb") as resumed:
        assert resumed.readlines() == whole.readlines()[:kept]
