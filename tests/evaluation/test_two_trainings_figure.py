"""Two trainings side by side: what is drawn is what their histories hold."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import style

from jscpt_peft.evaluation.lines import smooth, smoothing_window
from jscpt_peft.evaluation.style import STYLE, write_figures
from jscpt_peft.evaluation.two_trainings_figure import two_trainings_figure


def training(seed, steps, tasks):
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-1, 1, (steps, tasks, tasks))
    return {"step": np.arange(1.0, steps + 1), "loss": rng.uniform(1, 2, (steps, tasks)), "gradient_cosine": cosines}


@pytest.mark.parametrize("tasks", [2, 7])
def test_losses_by_task_above_the_cosines_of_the_same_steps_of_both(tasks):
    trainings, names = {"joint": training(1, 60, tasks), "ours": training(2, 50, tasks)}, [*"abcdefg"[:tasks]]
    with style.context(["default", STYLE]):
        figure = two_trainings_figure(trainings, names)
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in panels] == names
    for task, axes in enumerate(panels):
        drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
        for name, arrays in trainings.items():
            np.testing.assert_array_equal(drawn[f"_raw {name}"], arrays["loss"][:, task])
            smoothed = smooth(arrays["loss"], smoothing_window(len(arrays["loss"])))
            np.testing.assert_array_equal(drawn[name], smoothed[:, task])
    maps = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.collections and not axes.lines}
    windows = {"steps 1 to 5": slice(0, 5), "steps 46 to 50": slice(45, 50)}
    if tasks > 5:
        del windows["steps 1 to 5"]
    found = {title: axes.collections[0].get_array() for title, axes in maps.items() if title}
    assert [*found] == [f"{name}\n{title}" for name in trainings for title in windows]
    for name, arrays in trainings.items():
        for title, window in windows.items():
            expected = np.where(np.eye(tasks, dtype=bool), np.nan, arrays["gradient_cosine"][window].mean(0))
            np.testing.assert_allclose(found[f"{name}\n{title}"].filled(np.nan), expected)


@pytest.mark.filterwarnings("error")  # such as that labels leave no room for what is drawn
def test_few_steps_long_names_and_absent_tasks_are_drawn(tmp_path):
    first, second = training(1, 1, 6), training(2, 1, 6)
    first["loss"][:, 0] = first["gradient_cosine"][:, 0] = np.nan
    names = [f"costs ${task} of ${'x' * 60}" for task in range(6)]
    both = {"jscpt --no_prompt_scheduling --no_task_scheduling": first, "jscpt": second}
    (path,) = write_figures(tmp_path, {"losses.png": lambda: two_trainings_figure(both, names)})
    assert path.stat().st_size > 10000
