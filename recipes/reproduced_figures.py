"""Figures of the runs of a table, counterparts of the paper's Figs. 1(c), 4 and 5, from the runs' histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from measured_run import DRAWN, Run, parsed

from jscpt_peft.evaluation.history import history_arrays, read_history
from jscpt_peft.evaluation.history_figures import gradient_cosines_figure
from jscpt_peft.evaluation.prompt_scheduling_figure import present_weights, prompt_scheduling_figure
from jscpt_peft.evaluation.style import write_figures
from jscpt_peft.evaluation.two_trainings_figure import two_trainings_figure
from jscpt_peft.scheduling import NEUTRAL_EFFECT
from jscpt_peft.training.step_log import HISTORY_FILE

PLAIN = "mvlpt, or jscpt with equal weights, with gradient cosines in its history"
SCHEDULED = "jscpt with its scheduler"


@dataclass(frozen=True)
class History:
    """A run, and what it wrote: names of the tasks, and columns as `history_arrays` returns them."""

    run: Run
    tasks: list[str]
    arrays: dict[str, np.ndarray]


def draw_runs(runs: Sequence[Run], output: Path) -> str:
    """Draws into `output/figures`, for each part of the table, and says in Markdown what is there and what is not.

    The runs are done, and of one seed.
    """
    settings = dict.fromkeys(run.setting for run in runs)
    return "\n".join(_draw_part([run for run in runs if run.setting == setting], output) for setting in settings)


def _draw_part(runs: Sequence[Run], output: Path) -> str:
    histories = _histories(runs, output)
    found = {PLAIN: _plain(histories), SCHEDULED: _scheduled(histories)}
    figures = {  # the paper's number, what the figure needs, and how it is drawn of that
        "gradient_cosines.png": ("1(c)", (PLAIN,), _gradient_cosines),
        "prompt_scheduling.png": ("4", (SCHEDULED,), _prompt_scheduling),
        "losses.png": ("5", (PLAIN, SCHEDULED), _losses),
    }
    folder, makers, lines = Path("figures", runs[0].setting.replace(" ", "-")), {}, []
    for name, (number, needed, make) in figures.items():
        given, missing = [found[each] for each in needed], [each for each in needed if found[each] is None]
        if missing:
            (output / folder / name).unlink(missing_ok=True)  # of other methods
            lines.append(f"- no `{folder / name}` (Fig. {number}): there is no {' and no '.join(missing)}")
        else:
            makers[name] = partial(make, *given)
            methods = " and ".join(f"`{each.run.method}`" for each in given)
            lines.append(f"- `{folder / name}` (Fig. {number}) of {methods}")
    write_figures(output / folder, makers)
    return "\n".join(lines)


def _histories(runs: Sequence[Run], output: Path) -> list[History]:
    """Of the runs that figures are drawn of, as far as they wrote one."""
    histories = []
    for run in runs:
        path = run.folder(output) / HISTORY_FILE
        rows = read_history(path) if run.name in DRAWN and path.exists() else []
        if rows:
            histories.append(History(run, rows[0]["tasks"], history_arrays(rows)))
    return histories


def _plain(histories: Sequence[History]) -> History | None:
    """A run in which every task always counted 1, and tasks share something; of MVLPT, as in the paper, if any."""
    fitting = []
    for each in histories:
        weights = present_weights(each.arrays)
        related = "gradient_cosine" in each.arrays and np.nansum(np.abs(each.arrays["gradient_cosine_mean"])) > 0
        if related and (weights[np.isfinite(weights)] == 1).all():
            fitting.append(each)
    return min(fitting, key=lambda each: DRAWN.index(each.run.name), default=None)


def _scheduled(histories: Sequence[History]) -> History | None:
    return next((each for each in histories if each.run.name == "jscpt" and "causal_effect" in each.arrays), None)


def _gradient_cosines(plain: History) -> Figure:
    return gradient_cosines_figure(plain.arrays, plain.tasks)


def _prompt_scheduling(scheduled: History) -> Figure:
    _, _, training = parsed([*scheduled.run.words, "--output_dir", "unused"], scheduled.run.method)
    return prompt_scheduling_figure(
        scheduled.arrays, scheduled.tasks, neutral_effect=NEUTRAL_EFFECT[training.causal_effect]
    )


def _losses(plain: History, scheduled: History) -> Figure:
    trainings = {each.run.method: each.arrays for each in (plain, scheduled)}
    return two_trainings_figure(trainings, plain.tasks)
