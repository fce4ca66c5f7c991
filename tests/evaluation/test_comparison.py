from __future__ import annotations

import pandas as pd
import pytest

from jscpt_peft.evaluation.comparison import MEAN, comparison_markdown, summarise
from jscpt_peft.evaluation.comparison_figure import comparison_figure, draw_comparison


def runs(accuracies: dict[str, list[tuple[float, float]]]) -> pd.DataFrame:
    """Method -> accuracies of the tasks `art` and `real`, by seed."""
    rows = [
        {"method": method, "seed": seed, "task": task, "accuracy": accuracy}
        for method, of_seeds in accuracies.items()
        for seed, pair in enumerate(of_seeds)
        for task, accuracy in zip(("art", "real"), pair, strict=True)
    ]
    return pd.DataFrame(rows)


def test_means_and_deviations_over_seeds():
    summary = summarise(runs({"b": [(0.5, 0.7), (0.7, 0.7)], "a": [(0.5, 0.5)]}))
    assert list(summary.index) == ["b", "a"]  # as they came
    assert summary.loc["b", ("art", "mean")] == pytest.approx(0.6)
    assert summary.loc["b", ("art", "std")] == pytest.approx(0.1 * 2**0.5)
    assert summary.loc["b", (MEAN, "std")] == pytest.approx(0.05 * 2**0.5)  # of the means, not the mean of those


def test_base_and_new_classes_have_their_harmonic_mean():
    found = runs({"x": [(0.9, 0.6)]}).replace({"art": "art, base", "real": "art, new"})
    summary = summarise(found).xs("mean", axis=1, level=1)
    assert list(summary) == ["art, base", "art, new", "base", "new", "harmonic mean"]
    assert [*summary.loc["x"]] == pytest.approx([0.9, 0.6, 0.9, 0.6, 2 * 0.9 * 0.6 / 1.5])


def test_the_best_is_bold_and_the_second_underlined():
    summary = summarise(runs({"x": [(0.5, 0.2)], "y": [(0.5004, 0.3)], "z": [(0.4, 0.1)], "w": [(0.3, 0.1)]}))
    lines = comparison_markdown(summary, {"ms": {"x": "7"}}).splitlines()
    assert lines[0] == "| method | art | real | mean | ms |"
    assert lines[2] == "| x | **50.0** | <u>20.0</u> | <u>35.0</u> | 7 |"  # as printed the two are equally good
    assert lines[3] == "| y | **50.0** | **30.0** | **40.0** |  |"
    assert lines[4].startswith("| z | <u>40.0</u> | 10.0 |")
    alone = comparison_markdown(summarise(runs({"x": [(0.5, 0.2), (0.5, 0.2)]})), {})
    assert "| x | 50.0 ± 0.0 | 20.0 ± 0.0 | 35.0 ± 0.0 |" in alone


def test_a_figure_of_growing_training_data_has_a_panel_for_each_task_and_one_of_their_mean(tmp_path):
    found = runs({"x": [(0.5, 0.2), (0.6, 0.2)], "y": [(0.5, 0.3), (0.5, 0.3)]})
    grown = pd.concat([found.assign(setting=f"{shots} shots") for shots in (5, 1)])
    (path,) = draw_comparison(grown, tmp_path)
    assert path.stat().st_size > 10_000
    figure = comparison_figure(grown)
    assert [axes.get_title() for axes in figure.axes] == ["mean of tasks", "art", "real"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["y", "x"]  # the best first
    line = figure.axes[1].containers[-1].lines[0]  # the best method is drawn last
    assert [*line.get_xdata()] == ["5", "1"] and [*line.get_ydata()] == pytest.approx([50, 50])
