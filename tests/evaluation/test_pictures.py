from __future__ import annotations

import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jscpt_peft.evaluation import SchedulerHistory, draw_pictures, history_arrays, read_history
from jscpt_peft.evaluation.charts import COLOURS, short_name
from jscpt_peft.evaluation.line_chart import smooth, smoothing_window, spread
from jscpt_peft.evaluation.pictures import losses_figure, weights_figure
from jscpt_peft.evaluation.prompt_pictures import causal_effects_figure, prompt_scheduling_figure
from jscpt_peft.evaluation.relation_pictures import affinity_figure, gradient_cosines_figure

NAMES = [
    "losses.png",
    "weights.png",
    "affinity.png",
    "gradient_cosines.png",
    "causal_effects.png",
    "prompt_scheduling.png",
]


def history(path, tasks, steps, seed=0, every=10, absent=False, per_epoch=10):
    """A synthetic run: falling losses, noise elsewhere; with `absent` the first task misses every third step."""
    count = len(tasks)
    rng = np.random.default_rng(seed)
    with SchedulerHistory(path, tasks) as writer:
        for step in range(1, steps + 1):
            values = rng.uniform(0.5, 1.5, (3, count))
            affinity = rng.uniform(-0.5, 0.5, (count, count))
            if absent and step % 3 == 0:
                values[:, 0] = affinity[0] = affinity[:, 0] = np.nan
            update = {
                "step_size": 0.1,
                "hypergradient_norm": 1.0,
                "dev_loss": 2.0,
                "neumann_terms": 3,
                "graph_bytes": 0,
            }
            writer.append(
                step=step,
                epoch=step / per_epoch,
                loss=values[0] * np.exp(-step / steps),
                causal_effect=0.5 * values[1],
                alpha=np.ones(count),
                beta=np.ones(count),
                prompt_factor=values[2] / 2,
                task_factor=np.where(np.isnan(values[2]), np.nan, 0.5),
                weight=np.nan_to_num(values[2] / np.nanmean(values[2])),
                alpha_after=np.ones(count),
                beta_after=np.ones(count),
                nonfinite=np.isnan(values[2]),
                affinity=affinity,
                gradient_cosine=(affinity + affinity.T) / 2 + np.eye(count),
                gradient_norm=1.0,
                scheduler=update if step % every == 0 else None,
            )
    return path


def tasks(count):
    return [f"task {number}" for number in range(count)]


def arrays_of(path):
    return history_arrays(read_history(path))


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def drawn(figure):
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (tasks(1), 30),
        (tasks(2), 1),
        (tasks(4), 120),
        (tasks(10), 30),
        (["costs $5 of $6", "x" * 90, "Zürich_street"], 2),
    ],
    ids=["one task", "one step", "four tasks", "ten tasks", "odd names"],
)
@pytest.mark.filterwarnings("error")
def test_pictures_are_written_in_talk_size_and_not_blank(tmp_path, names, steps):
    path = history(tmp_path / "history.jsonl", names, steps, absent=len(names) > 1)
    paths = draw_pictures(path, tmp_path / "new folder")
    assert paths == [tmp_path / "new folder" / name for name in NAMES]
    for picture in paths:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert 1600 <= image.width <= 2400
            assert 800 <= image.height <= 2000
            pixels = np.asarray(image.convert("L"))
        dark = (pixels < 128).mean()
        assert 0.001 < dark < 0.3
        # Whatever lies on the border was probably cut off.
        assert all(edge.min() > 200 for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_up_to_five_tasks_share_a_panel_and_are_named_at_their_lines(tmp_path):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(5), 100))
    (axes,) = drawn(losses_figure(arrays, tasks(5))).axes
    curves = lines(axes)
    for task, name in enumerate(tasks(5)):
        np.testing.assert_array_equal(curves[f"_raw {name}"], arrays["loss"][:, task])
        np.testing.assert_allclose(curves[name], smooth(arrays["loss"][:, task], smoothing_window(100)))
    labels = {text.get_text(): text.get_color() for text in axes.texts}
    assert labels == dict(zip(tasks(5), COLOURS, strict=True))
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert all(colours[name] == labels[name] for name in labels)
    assert axes.get_ylim()[0] == 0
    assert axes.get_xlabel() == "optimizer step"
    assert "nats" in axes.get_ylabel()


@pytest.mark.parametrize("count", [6, 7, 10, 13])
def test_more_tasks_get_a_panel_each(tmp_path, count):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(count), 50))
    figure = drawn(weights_figure(arrays, tasks(count)))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == tasks(count)
    for task, axes in enumerate(panels):
        np.testing.assert_array_equal(lines(axes)[f"_raw task {task}"], arrays["weight"][:, task])
    assert len({axes.get_ylim() for axes in panels}) == 1


def test_few_steps_are_drawn_as_they_are(tmp_path):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(2), 12))
    (axes,) = losses_figure(arrays, tasks(2)).axes
    np.testing.assert_array_equal(lines(axes)["task 1"], arrays["loss"][:, 1])
    low, high = axes.get_ylim()
    assert low <= arrays["loss"].min() <= arrays["loss"].max() <= high


def test_updates_of_omega_are_marked_where_they_were(tmp_path):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(2), 50, every=20))
    (axes,) = weights_figure(arrays, tasks(2)).axes
    (marks,) = [line for line in axes.lines if line.get_label() == "_marked steps"]
    assert list(marks.get_xdata()) == [20, 40]


def test_equal_weights_are_a_line_only_where_weights_are_normalised(tmp_path):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(3), 20, absent=True))
    assert "equal weights" in [text.get_text() for text in weights_figure(arrays, tasks(3)).axes[0].texts]
    arrays["weight"][:, 1] *= -1  # a gradient aggregator may turn a task round: sizes count
    assert "equal weights" in [text.get_text() for text in weights_figure(arrays, tasks(3)).axes[0].texts]
    arrays["weight"] = arrays["weight"] * 0.34
    assert "equal weights" not in [text.get_text() for text in weights_figure(arrays, tasks(3)).axes[0].texts]


@pytest.mark.parametrize("neutral", [0.731, 0.5])
def test_neutral_line_of_the_causal_effect(tmp_path, neutral):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(2), 20))
    arrays["causal_effect"][:] = 0.9
    (axes,) = causal_effects_figure(arrays, tasks(2), neutral_effect=neutral).axes
    assert [neutral, neutral] in [list(line.get_ydata()) for line in axes.lines]
    assert axes.get_ylim()[0] < neutral < 0.9 < axes.get_ylim()[1]
    assert f"no effect ({neutral})" in [text.get_text() for text in axes.texts]


def test_affinity_shows_incoming_means_and_matrices_at_three_times(tmp_path):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(3), 30, absent=True))
    figure = affinity_figure(arrays, tasks(3))
    curve_axes, *heat_maps, _bar = figure.axes
    affinity = arrays["affinity"]
    incoming = [np.nanmean([affinity[t, j, 1] for j in (0, 2)]) for t in range(30)]
    np.testing.assert_allclose(lines(curve_axes)["task 1"], incoming)
    assert [axes.get_title(loc="left") for axes in heat_maps] == ["steps 1 to 3", "steps 14 to 16", "steps 28 to 30"]
    for axes, window in zip(heat_maps, (slice(0, 3), slice(13, 16), slice(27, 30)), strict=True):
        cells = axes.collections[0].get_array()
        assert np.ma.getmaskarray(cells).diagonal().all()
        np.testing.assert_allclose(cells[0, 2], np.nanmean(affinity[window, 0, 2]))
        assert axes.yaxis_inverted()  # row 0, the first source, on top as in the matrix


@pytest.mark.parametrize("count", [2, 3])
def test_cosines_of_few_pairs_share_a_panel(tmp_path, count):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(count), 30))
    (axes,) = drawn(gradient_cosines_figure(arrays, tasks(count))).axes
    curves = lines(axes)
    for one in range(count):
        for other in range(one + 1, count):
            curve = curves[f"task {one} – task {other}"]
            np.testing.assert_array_equal(curve, arrays["gradient_cosine"][:, one, other])
    assert axes.get_ylim()[0] < 0 < axes.get_ylim()[1]


@pytest.mark.parametrize("count", [4, 7, 10])
def test_cosines_of_many_pairs_have_a_panel_for_each_task(tmp_path, count):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(count), 90, absent=True))
    figure = drawn(gradient_cosines_figure(arrays, tasks(count)))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == tasks(count)
    for task, axes in enumerate(panels):
        curves = {label.removeprefix("_task ").removeprefix("task "): data for label, data in lines(axes).items()}
        others = [other for other in range(count) if other != task]
        for other in others:
            cosines = arrays["gradient_cosine"][:, task, other]
            np.testing.assert_allclose(curves[str(other)], smooth(cosines, smoothing_window(90)))
        assert str(task) not in curves
        if count > 5:
            means = {f"task {other}": np.nanmean(arrays["gradient_cosine"][:, task, other]) for other in others}
            named = [text.get_text() for text in axes.texts]
            assert named == [max(means, key=means.get), min(means, key=means.get)]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert legends == (tasks(count) if count <= 5 else [])


PANELS = ("causal_effect", "prompt_factor", "weight")


@pytest.mark.parametrize(
    ("steps", "per_epoch", "titles", "early", "late"),
    [
        (40, 8, ["epoch 1", "epoch 5"], range(1, 9), range(33, 41)),
        (45, 8, ["epoch 1", "epoch 5"], range(1, 9), range(33, 41)),  # the sixth epoch is not whole
        (12, 8, ["epoch 0.12 to 0.75", "epoch 0.88 to 1.5"], range(1, 7), range(7, 13)),
        (5, 20, ["epoch 0.05 to 0.15", "epoch 0.2 to 0.25"], range(1, 4), range(4, 6)),
    ],
    ids=["whole epochs", "a last epoch begun", "one and a half", "a quarter"],
)
def test_prompt_scheduling_shows_every_batch_of_an_early_and_a_late_epoch(
    tmp_path, steps, per_epoch, titles, early, late
):
    arrays = arrays_of(history(tmp_path / "history.jsonl", tasks(3), steps, per_epoch=per_epoch))
    panels = np.reshape(drawn(prompt_scheduling_figure(arrays, tasks(3), task=1)).axes, (3, 2))
    assert [axes.get_title(loc="left") for axes in panels[0]] == titles
    for row, name in zip(panels, PANELS, strict=True):
        assert row[0].get_ylim() == row[1].get_ylim()
        for axes, shown in zip(row, (early, late), strict=True):
            (line,) = [line for line in axes.lines if line.get_marker() == "o"]
            assert list(line.get_xdata()) == list(shown)
            np.testing.assert_array_equal(line.get_ydata(), arrays[name][np.array(shown) - 1, 1])


def test_prompt_scheduling_shows_sixteen_batches_of_long_epochs_and_leaves_out_absent_tasks(tmp_path):
    path = history(tmp_path / "history.jsonl", tasks(2), 300, per_epoch=100, absent=True)
    panels = np.reshape(drawn(prompt_scheduling_figure(arrays_of(path), tasks(2))).axes, (3, 2))
    assert [axes.get_title(loc="left") for axes in panels[0]] == [
        "epoch 1 (16 of 100 batches)",
        "epoch 3 (16 of 100 batches)",
    ]
    for axes in panels.flat:
        (line,) = [line for line in axes.lines if line.get_marker() == "o"]
        steps, values = line.get_data()
        assert len(steps) == 16
        assert {steps[0] % 100, steps[-1] % 100} == {1, 0}
        np.testing.assert_array_equal(np.isnan(values), steps % 3 == 0)


def test_the_task_of_prompt_scheduling_is_the_first_or_the_one_asked_for(tmp_path):
    path = history(tmp_path / "history.jsonl", ["art", "sketch"], 20)
    pictures = {}
    for name, options in {"default": {}, "art": {"task": "art"}, "sketch": {"task": "sketch"}}.items():
        pictures[name] = draw_pictures(path, tmp_path / name, **options)[-1].read_bytes()
    assert pictures["default"] == pictures["art"] != pictures["sketch"]
    with pytest.raises(ValueError, match=r"`task` must be one of .* got 'sketsh'. Did you mean 'sketch'"):
        draw_pictures(path, tmp_path, task="sketsh")


def test_drawing_leaves_the_users_matplotlib_alone_and_is_not_changed_by_it(tmp_path, monkeypatch):
    path = history(tmp_path / "history.jsonl", tasks(2), 5)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plain = [picture.read_bytes() for picture in draw_pictures(path, tmp_path / "plain")]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        before = matplotlib.rcParams.copy()
        styled = [picture.read_bytes() for picture in draw_pictures(path, tmp_path / "styled")]
        assert matplotlib.rcParams.copy() == before
    assert styled == plain
    assert "matplotlib.pyplot" not in sys.modules


def test_a_history_without_steps_is_an_error(tmp_path):
    SchedulerHistory(tmp_path / "history.jsonl", tasks(2)).close()
    with pytest.raises(ValueError, match=r"`history_path` is .*history.jsonl', which holds no step yet"):
        draw_pictures(tmp_path / "history.jsonl", tmp_path)
    with pytest.raises(FileNotFoundError):
        draw_pictures(tmp_path / "missing.jsonl", tmp_path)


def test_smooth_is_the_mean_of_the_known_neighbours():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan, np.nan, 2.0])
    np.testing.assert_allclose(smooth(values, 3), [1, 2, 4, 4, 5, np.nan, 2, 2])
    np.testing.assert_array_equal(smooth(values, 1), values)
    assert all(smoothing_window(count) % 2 == 1 and smoothing_window(count) <= count for count in range(1, 3000))


@pytest.mark.parametrize("seed", range(5))
def test_spread_keeps_order_and_gap_and_moves_no_more_than_needed(seed):
    positions = np.random.default_rng(seed).uniform(0, 1, 6)
    moved = np.array(spread(positions, gap=0.15))
    order = np.argsort(positions)
    assert (np.diff(moved[order]) >= 0.15 - 1e-12).all()
    assert moved.mean() == pytest.approx(positions.mean())
    assert spread([0.1, 0.9, 0.5], gap=0.2) == pytest.approx([0.1, 0.9, 0.5])
    # Any other arrangement that keeps the gaps is farther from where the lines end.
    for shift in np.random.default_rng(seed).normal(0, 0.05, (50, 6)):
        other = moved + shift
        if (np.diff(other[order]) >= 0.15).all():
            assert ((other - positions) ** 2).sum() > ((moved - positions) ** 2).sum()


def test_short_names_keep_both_ends_and_dollar_signs():
    assert short_name("sketch", 10) == "sketch"
    assert short_name("photographs of furniture", 9) == "phot…ture"
    assert short_name("$5") == r"\$5"
