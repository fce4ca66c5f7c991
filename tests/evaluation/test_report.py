from __future__ import annotations

import io
import json
import math

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

TASKS = ["art", "[red]a|b[/red]"]


def metrics(art, other, **more):
    worst = min(art, other)
    mean = (art + other) / 2
    return {
        "accuracy/art": art,
        f"accuracy/{TASKS[1]}": other,
        "mean_accuracy": mean,
        "worst_task_accuracy": worst,
        **more,
    }


BEFORE, AFTER = metrics(0.5, 0.25), metrics(0.6254, 0.75)


def printed(table, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_results(table, console=console)
    return console.file.getvalue()


def markdown_cells(table):
    lines = [line for line in results_markdown(table).splitlines() if line.startswith("|")]
    return [[cell.strip(" *") for cell in line.replace(r"\|", "¦").strip("|").split("|")] for line in lines]


def test_table_holds_the_metrics_and_names_the_worst_tasks():
    table = results_table(BEFORE, AFTER, TASKS)
    assert [(row.name, row.zero_shot, row.trained) for row in table.tasks] == [
        ("art", 0.5, 0.6254),
        (TASKS[1], 0.25, 0.75),
    ]
    assert table.mean.difference == pytest.approx((0.6254 - 0.5 + 0.75 - 0.25) / 2)
    assert (table.worst_task.zero_shot, table.worst_task.zero_shot_task) == (0.25, TASKS[1])
    assert (table.worst_task.trained, table.worst_task.trained_task) == (0.6254, "art")
    assert table.worst_group is None


def test_markdown_has_one_decimal_in_per_cent_and_signed_points():
    rows = markdown_cells(results_table(BEFORE, AFTER, TASKS))
    assert rows[0] == ["task", "zero-shot", "trained", "difference"]
    assert rows[2] == ["art", "50.0", "62.5", "+12.5"]
    assert rows[3] == ["[red]a¦b[/red]", "25.0", "75.0", "+50.0"]
    assert rows[4] == ["mean", "37.5", "68.8", "+31.3"]
    assert rows[5] == ["worst task ([red]a¦b[/red], then art)", "25.0", "62.5", "+37.5"]
    assert len({len(row) for row in rows}) == 1


def test_terminal_shows_the_same_cells():
    table = results_table(
        metrics(0.5, 0.25, worst_group_accuracy=0.1), metrics(0.4, 0.3, worst_group_accuracy=0.2), TASKS
    )
    text = printed(table)
    for row in markdown_cells(table)[2:]:
        line = next(line for line in text.splitlines() if row[0].replace("¦", "|") in line)
        assert all(cell.replace("¦", "|") in line for cell in row)
    assert "worst group" in text
    assert "-10.0" in text


def test_the_same_worst_task_is_named_once():
    rows = markdown_cells(results_table(metrics(0.5, 0.6), metrics(0.55, 0.6), TASKS))
    assert rows[5][0] == "worst task (art)"


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
        multi_task_accuracy(predictions, [0, 1, 2], [0, 0, 1], TASKS, groups=[0, 1, 0])
        for predictions in ([0, 0, 0], [0, 1, 0])
    )
    table = results_table(before, after, TASKS)
    paths = write_results(table, tmp_path / "run" / "outputs")
    assert [path.name for path in paths] == ["results.json", "results.md"]
    content = json.loads(paths[0].read_text("utf-8"))
    assert content == results_json(table)
    assert content["tasks"]["art"] == {"zero_shot": 0.5, "trained": 1.0, "difference": 0.5}
    assert content["mean"]["trained"] == 0.5
    assert content["worst_task"]["trained_task"] == TASKS[1]
    assert content["worst_group"] == {"zero_shot": 0.0, "trained": 0.0, "difference": 0.0}
    assert paths[1].read_text("utf-8") == results_markdown(table)


def test_json_is_not_rounded():
    table = results_table(metrics(1 / 3, 0.5), metrics(2 / 3, 0.5), TASKS)
    assert results_json(table)["tasks"]["art"]["zero_shot"] == 1 / 3


def test_prefix_of_the_trainer():
    before, after = ({f"eval_{name}": value for name, value in m.items()} for m in (BEFORE, AFTER))
    assert results_table({**before, "eval_loss": 1.0}, after, TASKS, "eval_") == results_table(BEFORE, AFTER, TASKS)


def test_missing_metrics_are_named():
    with pytest.raises(ValueError, match=r"`before` lacks \['accuracy/sketch'\]"):
        results_table(BEFORE, AFTER, [*TASKS, "sketch"])
    with pytest.raises(ValueError, match=r"`after` lacks \['worst_group_accuracy'\]"):
        results_table({**BEFORE, "worst_group_accuracy": 0.1}, AFTER, TASKS)
    with pytest.raises(ValueError, match=r"`after` lacks .*mean_accuracy"):
        results_table(BEFORE, {}, TASKS)
