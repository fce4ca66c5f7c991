from __future__ import annotations

import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib import style
from matplotlib.text import Text
from PIL import Image

from jscpt_peft.evaluation import SchedulerHistory, draw_figures, history_arrays, history_figures, read_history
from jscpt_peft.evaluation.history_figures import (
    affinity_figure,
    causal_effects_figure,
    gradient_cosines_figure,
    losses_figure,
    weights_figure,
)
from jscpt_peft.evaluation.lines import smooth, smoothing_window, spread
from jscpt_peft.evaluation.prompt_scheduling_figure import prompt_scheduling_figure
from jscpt_peft.evaluation.style import STYLE

NAMES = ["losses", "weights", "affinity", "gradient_cosines", "causal_effects", "prompt_scheduling"]


@pytest.fixture(autouse=True)
def styled():
    with style.context(["default", STYLE]):
        yield


def history(path, names, steps, every=10, absent=False, per_epoch=10, columns=None):
    """A synthetic run: falling losses, noise elsewhere; with `absent` the first task misses every third step."""
    count, rng = len(names), np.random.default_rng(0)
    writer = SchedulerHistory(path, names)
    for step in range(1, steps + 1):
        values, affinity = rng.uniform(0.5, 1.5, (3, count)), rng.uniform(-0.5, 0.5, (count, count))
        if absent and step % 3 == 0:
            values[:, 0] = affinity[0] = affinity[:, 0] = np.nan
        known = ~np.isnan(values[2])
        row = {
            "step": step,
            "epoch": step / per_epoch,
            "loss": values[0] * np.exp(-step / steps),
            "causal_effect": 0.5 * values[1],
            "prompt_factor": values[2] / 2,
            "weight": np.where(known, values[2] / values[2][known].mean(), 0) if known.any() else np.zeros(count),
            "nonfinite": ~known,
            "affinity": affinity,
            "gradient_cosine": (affinity + affinity.T) / 2 + np.eye(count),
            "scheduler": {"step_size": 0.1} if step % every == 0 else None,
        }
        writer.append({name: row[name] for name in columns or row})
    return path


def tasks(count):
    return [f"task {number}" for number in range(count)]


def arrays_of(*args, **options):
    return history_arrays(read_history(history(*args, **options)))


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def texts(axes):
    return {text.get_text(): text.get_color() for text in axes.texts}


def titles(panels):
    return [axes.get_title(loc="left") for axes in panels]


def panels_of(figure):
    """The axes above or without heat maps."""
    return [axes for axes in figure.axes if axes.lines]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "steps"), [(tasks(1), 50), (["costs $5 of $6", "x" * 90, "Zürich_street"], 1)], ids=["one", "one step"]
)
@pytest.mark.filterwarnings("error")  # such as that labels leave no room for what is drawn
def test_figures_of_all_that_the_history_holds_are_written(tmp_path, names, steps):
    path = history(tmp_path / "history.jsonl", names, steps, absent=True)
    paths = draw_figures(path, tmp_path / "new folder")
    expected = [name for name in NAMES if len(names) > 1 or name not in ("affinity", "gradient_cosines")]
    assert paths == [tmp_path / "new folder" / f"{name}.png" for name in expected]
    for figure in paths:
        with Image.open(figure) as image:
            assert (image.format, image.width) == ("PNG", 1800)


def test_what_a_weighting_does_not_log_is_not_drawn_nor_left_from_an_earlier_run(tmp_path, monkeypatch):
    monkeypatch.setattr(history_figures, "write_figures", lambda _, makers: [*makers])
    for name in (*NAMES, "own"):
        (tmp_path / f"{name}.png").touch()
    columns = ("step", "epoch", "loss", "weight", "gradient_cosine")
    plain = history(tmp_path / "plain.jsonl", tasks(3), 5, columns=columns)
    assert draw_figures(plain, tmp_path) == ["losses.png", "weights.png", "gradient_cosines.png"]
    assert {path.stem for path in tmp_path.glob("*.png")} == {"losses", "weights", "gradient_cosines", "own"}


def test_the_task_of_prompt_scheduling_is_the_first_or_the_one_asked_for(tmp_path, monkeypatch):
    path, makers = history(tmp_path / "history.jsonl", ["art", "sketch"], 20), []
    monkeypatch.setattr(history_figures, "write_figures", lambda _, each: makers.append(each))
    for options in ({}, {"task": "art"}, {"task": "sketch"}):
        draw_figures(path, tmp_path, **options)
    headings = [each["prompt_scheduling.png"]().texts[0].get_text() for each in makers]
    assert headings == [f"Prompt scheduling of {task}, batch by batch" for task in ("art", "art", "sketch")]
    with pytest.raises(ValueError, match=r"`task` must be one of .* got 'sketsh'. Did you mean 'sketch'"):
        draw_figures(path, tmp_path, task="sketsh")


def test_drawing_leaves_the_users_matplotlib_alone_and_is_not_changed_by_it(tmp_path, monkeypatch):
    path = history(tmp_path / "history.jsonl", tasks(2), 5, columns=("step", "loss"))
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plain = [figure.read_bytes() for figure in draw_figures(path, tmp_path / "plain")]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        before = matplotlib.rcParams.copy()
        styled = [figure.read_bytes() for figure in draw_figures(path, tmp_path / "styled")]
        assert matplotlib.rcParams.copy() == before
    assert styled == plain
    assert "matplotlib.pyplot" not in sys.modules


def test_a_history_without_steps_is_an_error(tmp_path):
    (tmp_path / "history.jsonl").touch()
    with pytest.raises(ValueError, match=r"`history_path` is .*history.jsonl', which holds no step yet"):
        draw_figures(tmp_path / "history.jsonl", tmp_path)
    with pytest.raises(FileNotFoundError):
        draw_figures(tmp_path / "missing.jsonl", tmp_path)


# ---- lines over time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 6, 21])
@pytest.mark.filterwarnings("error")
def test_every_task_is_drawn_and_those_in_colour_are_named(tmp_path, count):
    """Up to five share a panel, up to 20 have one each, and of more the two highest and the two lowest are named."""
    arrays = arrays_of(tmp_path / "history.jsonl", tasks(count), 100)
    figure = losses_figure(arrays, tasks(count))
    figure.canvas.draw()
    panels = panels_of(figure)
    assert len(panels) == (count if 5 < count <= 20 else 1)
    smoothed = smooth(arrays["loss"], smoothing_window(100))
    for place, axes in enumerate(panels):
        curves = lines(axes)
        coloured = [name for name in tasks(count) if name in curves]
        for name in coloured:
            number = tasks(count).index(name)
            np.testing.assert_array_equal(curves[f"_raw {name}"], arrays["loss"][:, number])
            np.testing.assert_array_equal(curves[name], smoothed[:, number])
        assert len(curves) - len(coloured) == count  # the raw values of the coloured ones, the others in grey
        if len(panels) > 1:
            assert coloured == titles([axes]) == [f"task {place}"]
        else:
            colours = {line.get_label(): line.get_color() for line in axes.lines}
            assert texts(axes) == {name: colours[name] for name in coloured}
            assert len(set(texts(axes).values())) == len(coloured)
    if count > 20:
        last = smoothed[-10:].mean(axis=0)
        assert set(coloured) == {f"task {number}" for number in (*np.argsort(last)[:2], *np.argsort(last)[-2:])}
    assert {axes.get_ylim()[0] for axes in panels} == {0}
    assert len({axes.get_ylim() for axes in panels}) == 1


def test_labels_at_the_lines_do_not_overlap_nor_leave_the_figure(tmp_path):
    arrays = arrays_of(tmp_path / "history.jsonl", ["x" * 60, *tasks(4)], 60)
    arrays["causal_effect"][:] = 0.731  # all end at one point, where the reference is too
    figure = causal_effects_figure(arrays, ["x" * 60, *tasks(4)])
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in panels_of(figure)[0].texts]  # without their connecting lines
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 and box.y0 >= 0 for box in boxes)


def test_updates_of_omega_are_marked_where_they_were(tmp_path):
    (axes,) = weights_figure(arrays_of(tmp_path / "history.jsonl", tasks(2), 50, every=20), tasks(2)).axes
    (marks,) = [line for line in axes.lines if line.get_marker() == "^"]
    assert list(marks.get_xdata()) == [20, 40]
    assert "triangles" in axes.get_xlabel()


def test_weights_have_gaps_where_a_task_was_absent_and_a_line_where_all_are_equal(tmp_path):
    arrays = arrays_of(tmp_path / "history.jsonl", tasks(3), 20, absent=True)
    (axes,) = weights_figure(arrays, tasks(3)).axes
    np.testing.assert_array_equal(np.isnan(lines(axes)["task 0"]), arrays["step"] % 3 == 0)
    assert "equal weights" in texts(axes)
    arrays["weight"][:, 1] *= -1  # a weighting may turn a task round: sizes count
    assert "equal weights" in texts(weights_figure(arrays, tasks(3)).axes[0])
    arrays["weight"] = arrays["weight"] * 0.34
    assert "equal weights" not in texts(weights_figure(arrays, tasks(3)).axes[0])


def test_neutral_line_of_the_causal_effect(tmp_path):
    arrays = arrays_of(tmp_path / "history.jsonl", tasks(2), 20)
    arrays["causal_effect"][:] = 0.9
    (axes,) = causal_effects_figure(arrays, tasks(2), neutral_effect=0.5).axes
    assert [0.5, 0.5] in [list(line.get_ydata()) for line in axes.lines]
    assert axes.get_ylim()[0] < 0.5 < 0.9 < axes.get_ylim()[1]
    assert "no effect (0.5)" in texts(axes)


# ---- between tasks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "count"), [(affinity_figure, 3), (gradient_cosines_figure, 12)])
def test_heat_maps_are_means_over_some_steps_without_the_diagonal(tmp_path, make, count):
    arrays = arrays_of(tmp_path / "history.jsonl", tasks(count), 30, absent=True)
    figure = make(arrays, tasks(count))
    maps = [axes for axes in figure.axes if axes.collections and axes.get_title(loc="left")]
    middle = [("steps 14 to 16", slice(13, 16))] if count == 3 else []
    windows = [("steps 1 to 3", slice(0, 3)), *middle, ("steps 28 to 30", slice(27, 30))]
    assert titles(maps) == [title for title, _ in windows]
    matrices = arrays["affinity" if make is affinity_figure else "gradient_cosine"]
    for axes, (_, window) in zip(maps, windows, strict=True):
        cells = axes.collections[0].get_array()
        expected = np.nanmean(matrices[window], axis=0)
        np.fill_diagonal(expected, np.nan)
        np.testing.assert_allclose(cells.filled(np.nan), expected)
        assert axes.yaxis_inverted()  # row 0, the first source, on top as in the matrix


@pytest.mark.parametrize("count", [3, 9])
def test_every_pair_has_its_gradient_cosines(tmp_path, count):
    arrays = arrays_of(tmp_path / "history.jsonl", tasks(count), 30)
    panels = panels_of(gradient_cosines_figure(arrays, tasks(count)))
    drawn = {label: curve for axes in panels for label, curve in lines(axes).items() if label.startswith("task")}
    pairs = {f"task {i} – task {j}": (i, j) for i in range(count) for j in range(i + 1, count)}
    assert set(drawn) == set(pairs) if len(pairs) <= 20 else len(drawn) == 4
    for label, curve in drawn.items():
        np.testing.assert_array_equal(curve, arrays["gradient_cosine"][:, *pairs[label]])
    assert all(axes.get_ylim()[0] < 0 < axes.get_ylim()[1] for axes in panels)


def test_of_many_tasks_the_means_with_the_others_are_drawn(tmp_path):
    arrays = arrays_of(tmp_path / "history.jsonl", tasks(40), 10)
    for make, column in ((affinity_figure, "affinity_mean"), (gradient_cosines_figure, "gradient_cosine_mean")):
        (axes,) = make(arrays, tasks(40)).axes
        (name, *_) = [label for label in lines(axes) if label.startswith("task")]
        np.testing.assert_array_equal(lines(axes)[name], arrays[column][:, tasks(40).index(name)])


# ---- Fig. 4 ---------------------------------------------------------------------------------------------------------


def dotted(axes):
    (line,) = [line for line in axes.lines if line.get_marker() == "o"]
    return line.get_data()


@pytest.mark.parametrize(
    ("steps", "per_epoch", "shown_titles", "early", "late"),
    [
        (45, 8, ["epoch 1", "epoch 5"], range(1, 9), range(33, 41)),  # the sixth epoch is not whole
        (12, 8, ["epoch 0.12 to 0.75", "epoch 0.88 to 1.5"], range(1, 7), range(7, 13)),
    ],
    ids=["whole epochs", "one and a half"],
)
def test_prompt_scheduling_shows_every_batch_of_an_early_and_a_late_epoch(
    tmp_path, steps, per_epoch, shown_titles, early, late
):
    arrays = arrays_of(tmp_path / "history.jsonl", tasks(3), steps, per_epoch=per_epoch)
    panels = np.reshape(prompt_scheduling_figure(arrays, tasks(3), task=1).axes, (3, 2))
    assert titles(panels[0]) == shown_titles
    for row, name in zip(panels, ("causal_effect", "prompt_factor", "weight"), strict=True):
        assert row[0].get_ylim() == row[1].get_ylim()
        for axes, shown in zip(row, (early, late), strict=True):
            found_steps, values = dotted(axes)
            assert list(found_steps) == list(shown)
            np.testing.assert_array_equal(values, arrays[name][np.array(shown) - 1, 1])


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_smooth_is_the_mean_of_the_known_neighbours_and_does_not_run_on_into_gaps():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 3))
    values[20:40, 0] = values[::3, 1] = values[:, 2] = np.nan
    for window in (1, 5, 9):
        smoothed = smooth(values, window)
        for step in range(60):
            near = values[max(0, step - window // 2) : step + window // 2 + 1]
            for column in (0, 1):
                known = near[np.isfinite(near[:, column]), column]
                if np.isfinite(smoothed[step, column]):
                    assert smoothed[step, column] == pytest.approx(known.mean())
        assert np.isfinite(smoothed[:20, 0]).all() and np.isnan(smoothed[22:38, 0]).all()
        assert window == 1 or np.isfinite(smoothed[:, 1]).all()  # a task of some steps only has a whole line
        assert np.isnan(smoothed[:, 2]).all()
    np.testing.assert_array_equal(smooth(values, 1), values)
    assert all(smoothing_window(count) % 2 == 1 and smoothing_window(count) <= count for count in range(1, 3000))


def test_spread_keeps_order_and_gap_and_moves_only_what_is_too_close():
    positions = np.random.default_rng(0).uniform(0, 1, 6)
    moved, order = spread(positions, gap=0.15), np.argsort(positions)
    assert (np.diff(moved[order]) >= 0.15 - 1e-12).all()
    assert spread([0.1, 0.9, 0.5, 0.55], gap=0.1) == pytest.approx([0.1, 0.9, 0.475, 0.575])
