from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console

from jscpt_peft.evaluation import (
    multi_task_accuracy,
    print_results,
    results_json,
    results_markdown,
    results_table,
    write_results,
)

TASKS = ["art", "[red]a|b[/red]\x1b]52;"]


def metrics(art, other, **more):
    means = {"mean_accuracy": (art + other) / 2, "worst_task_accuracy": min(art, other)}
    return {"accuracy/art": art, f"accuracy/{TASKS[1]}": other, **means, **more}


BEFORE, AFTER = metrics(0.5, 0.25), metrics(0.6254, 0.75)


def printed(table):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    print_results(table, console=console)
    return console.file.getvalue()


def markdown_cells(table):
    lines = [line for line in results_markdown(table).splitlines() if line.startswith("|")]
    rows = [line.replace(r"\|", "¦").strip("|").split("|") for line in lines]
    return [[re.sub(r"\\([\\\[])", r"\1", cell.strip(" *")) for cell in row] for row in rows]


def test_table_holds_the_metrics_and_their_differences():
    table = results_table(BEFORE, AFTER, TASKS)
    assert table.loc["task"][["zero_shot", "trained"]].values.tolist() == [[0.5, 0.6254], [0.25, 0.75]]
    assert table.loc[("summary", "mean"), "difference"] == pytest.approx((0.6254 - 0.5 + 0.75 - 0.25) / 2)
    assert list(table.loc["summary"].index) == ["mean", "worst_task"]


def test_markdown_has_one_decimal_in_per_cent_and_signed_points():
    rows = markdown_cells(results_table(BEFORE, AFTER, TASKS))
    assert rows[0] == ["task", "zero-shot", "trained", "difference"]
    assert rows[2:] == [
        ["art", "50.0", "62.5", "+12.5"],
        ["[red]a¦b[/red]\\x1b]52;", "25.0", "75.0", "+50.0"],
        ["mean", "37.5", "68.8", "+31.3"],
        ["worst task ([red]a¦b[/red]\\x1b]52;, then art)", "25.0", "62.5", "+37.5"],
    ]
    assert markdown_cells(results_table(metrics(0.5, 0.6), metrics(0.55, 0.6), TASKS))[5][0] == "worst task (art)"


def test_terminal_shows_the_same_cells():
    before, after = (metrics(0.5, 0.25, worst_group_accuracy=0.1), metrics(0.4, 0.3, worst_group_accuracy=0.2))
    table = results_table(before, after, TASKS)
    text = printed(table)
    for row in markdown_cells(table)[2:]:
        line = next(line for line in text.splitlines() if row[0].replace("¦", "|") in line)
        assert all(cell.replace("¦", "|") in line for cell in row)
    assert "worst group" in text and "-10.0" in text and "\x1b" not in text


def test_no_negative_zero_and_no_number_for_a_task_without_samples():
    before, after = metrics(0.5, 0.5), metrics(0.4999, 0.5)
    before[f"accuracy/{TASKS[1]}"] = math.nan
    table = results_table(before, after, TASKS)
    rows = markdown_cells(table)
    assert rows[2][3] == "+0.0"
    assert rows[3][1:] == ["n/a", "50.0", "n/a"]
    assert "n/a" in printed(table)
    assert results_json(table)["tasks"][TASKS[1]] == {"zero_shot": None, "trained": 0.5, "difference": None}


def test_files_hold_raw_values_and_the_same_table(tmp_path):
    before, after = (
        multi_task_accuracy(predictions, [0, 1, 2, 0], [0, 0, 0, 1], TASKS, groups=[0, 1, 0, 0])
        for predictions in ([0, 0, 0, 1], [0, 1, 0, 1])
    )
    table = results_table(before, after, TASKS)
    paths = write_results(table, tmp_path / "run" / "outputs")
    assert [path.name for path in paths] == ["results.json", "results.md"]
    content = json.loads(paths[0].read_text("utf-8"))
    assert content == results_json(table)
    assert content["tasks"]["art"] == {"zero_shot": 1 / 3, "trained": 2 / 3, "difference": 1 / 3}  # not rounded
    assert content["mean"]["trained"] == 1 / 3
    assert content["worst_task"]["trained_task"] == content["worst_task"]["zero_shot_task"] == TASKS[1]
    assert content["worst_group"] == {"zero_shot": 0.0, "trained": 0.0, "difference": 0.0}
    assert results_json(results_table(BEFORE, AFTER, TASKS))["worst_group"] is None
    assert paths[1].read_text("utf-8") == results_markdown(table)


def test_prefix_of_the_trainer():
    before, after = ({f"eval_{name}": value for name, value in m.items()} for m in (BEFORE, AFTER))
    table = results_table({**before, "eval_loss": 1.0}, after, TASKS, "eval_")
    assert table.equals(results_table(BEFORE, AFTER, TASKS))


def test_a_task_may_be_called_mean():
    names = ["mean", "worst_task"]
    before = multi_task_accuracy([1, 0], [1, 1], [0, 1], names)
    assert results_json(results_table(before, before, names))["tasks"]["mean"]["trained"] == 1
    assert results_json(results_table(before, before, names))["mean"]["trained"] == 0.5


def test_missing_metrics_are_named():
    with pytest.raises(ValueError, match=r"`before` lacks \['accuracy/sketch'\]"):
        results_table(BEFORE, AFTER, [*TASKS, "sketch"])
    with pytest.raises(ValueError, match=r"`after` lacks \['worst_group_accuracy'\]"):
        results_table({**BEFORE, "worst_group_accuracy": 0.1}, AFTER, TASKS)
    with pytest.raises(ValueError, match=r"`after` lacks .*mean_accuracy"):
        results_table(BEFORE, {}, TASKS)
