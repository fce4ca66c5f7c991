"""How causal effects lead to weights, batch by batch (Fig. 4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jscpt_peft.scheduling import NEUTRAL_EFFECT

from .lines import Reference, axis_limits
from .style import COLOURS, DASHED, GREY, new_figure, short_name

LITERAL_NEUTRAL_EFFECT = NEUTRAL_EFFECT["literal"]
MOST_BATCHES = 16  # as many as in Fig. 4


def prompt_scheduling_figure(
    arrays: dict[str, np.ndarray],
    tasks: Sequence[str],
    task: int = 0,
    neutral_effect: float = LITERAL_NEUTRAL_EFFECT,
) -> Figure:
    """Causal effect Δ, prompt factor σ(αΔ) and weight φ of one task, batch by batch in two epochs.

    The epochs are the first and the last whole one; a run within one epoch is cut in two halves. Of longer epochs, 16
    batches at equal distances are shown.

    Args:
        arrays: as [`history_arrays`] returns them.
        tasks: [N] names.
        task: position of the task in `tasks`.
        neutral_effect: the causal effect of a selection that changes nothing.
    """
    rows = (
        (arrays["causal_effect"], "causal effect Δ", Reference(neutral_effect, "no effect")),
        (arrays["prompt_factor"], "prompt factor σ(αΔ)", None),
        (present_weights(arrays), "weight φ", equal_weights(arrays)),
    )
    epochs = _two_epochs(arrays["epoch"])
    figure = new_figure(
        f"Prompt scheduling of {short_name(tasks[task])}, batch by batch",
        "The larger the effect Δ of the selected features, the larger the factor σ(αΔ) of the task's weight φ.",
        height=9,
    )
    panels = figure.subplots(len(rows), len(epochs), sharex="col", sharey="row", squeeze=False)
    for row, colour, (values, label, reference) in zip(panels, COLOURS, rows, strict=False):
        shown = values[np.concatenate([chosen for _, chosen in epochs]), task]
        row[0].set_ylim(axis_limits(shown, shown, [] if reference is None else [reference.value], least_span=0.01))
        row[0].set_ylabel(label)
        for axes, (_, chosen) in zip(row, epochs, strict=True):
            if reference is not None:
                axes.axhline(reference.value, **DASHED)
            axes.plot(arrays["step"][chosen], values[chosen, task], "o-", color=colour, linewidth=1.2, markersize=6)
            if np.isnan(values[chosen, task]).all():
                axes.text(0.5, 0.5, "no data", color=GREY, ha="center", va="center", transform=axes.transAxes)
        if reference is not None:
            beside = {"transform": row[-1].get_yaxis_transform(), "va": "center"}
            row[-1].text(1.02, reference.value, reference.label, color=GREY, size=10.5, **beside)
    figure.align_ylabels(panels[:, 0])
    for column, (title, chosen) in zip(panels.T, epochs, strict=True):
        steps = arrays["step"][chosen]
        margin = 0.04 * max(steps[-1] - steps[0], 1)
        column[0].set_title(title, loc="left")
        column[-1].set(xlabel="optimizer step", xlim=(steps[0] - margin, steps[-1] + margin), xticks=_some(steps, 6))
    return figure


def present_weights(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Weights [T, N]; nan where a task was absent or not finite, whose weight of 0 says nothing about it."""
    present = np.isfinite(arrays["loss"]) & ~arrays.get("nonfinite", np.zeros_like(arrays["loss"], dtype=bool))
    return np.where(present, arrays["weight"], np.nan)


def equal_weights(arrays: dict[str, np.ndarray]) -> Reference | None:
    """What the weights are when all tasks count the same; None unless they are normalised to one such value."""
    weights = np.abs(present_weights(arrays))
    weights = weights[np.isfinite(weights).any(axis=1)]
    return Reference(1.0, "equal weights") if np.allclose(np.nanmean(weights, axis=1), 1.0, atol=1e-3) else None


def _two_epochs(epoch: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Title and positions of the steps shown: an early and a late epoch, from the passes [T] after each step."""
    number = np.ceil(np.round(epoch, 6))
    whole = [each for each in np.unique(number) if np.isclose(epoch, each, atol=1e-6).any()]
    if len(whole) < 2:
        halves = np.array_split(np.arange(len(epoch)), min(2, len(epoch)))
        return [(_part(epoch[half]), _some(half, MOST_BATCHES)) for half in halves]
    shown = []
    for each in (whole[0], whole[-1]):
        steps = np.flatnonzero(number == each)
        few = f" ({MOST_BATCHES} of {len(steps)} batches)" if len(steps) > MOST_BATCHES else ""
        shown.append((f"epoch {each:.0f}{few}", _some(steps, MOST_BATCHES)))
    return shown


def _part(epoch: np.ndarray) -> str:
    first, last = (f"{each:.2g}" for each in (epoch[0], epoch[-1]))
    return f"epoch {first}" if first == last else f"epoch {first} to {last}"


def _some(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, at equal distances, with the first and the last."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))]
