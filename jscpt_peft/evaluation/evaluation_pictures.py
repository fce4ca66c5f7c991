"""The pictures of an evaluation: accuracies, the worst task's confusion, reliability, robustness, the corruptions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter
from PIL import Image

from .charts import COLOURS, GREY, STYLE, new_figure, short_name
from .confusion import most_confused_classes
from .evaluation_results import Evaluation, Robustness
from .line_chart import LIGHT_GREY
from .pictures import DOTS_PER_INCH

SHOWN_CLASSES = 20
BLUE, ORANGE = COLOURS[:2]


def draw_evaluation(
    evaluation: Evaluation,
    output_dir: str | os.PathLike,
    examples: Sequence[tuple[str, Sequence[Image.Image]]] = (),
) -> list[Path]:
    """Draw the pictures of an evaluation into `output_dir`.

    They are `accuracy.png`, `confusion.png` (of the worst task) and `reliability.png`; with `evaluation.robustness`
    also `robustness.png`, and with `examples` also `corruptions.png`.

    Args:
        evaluation: what to draw.
        output_dir: made if need be.
        examples: pictures to show as (title, one picture a severity); of a picture as it is, a single one.

    Returns:
        The paths.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    # A style of our own, whatever the user's matplotlibrc says; theirs is back afterwards.
    with style.context(["default", STYLE]):
        figures = {
            "accuracy.png": accuracy_figure(evaluation),
            "confusion.png": confusion_figure(evaluation),
            "reliability.png": reliability_figure(evaluation),
        }
        if evaluation.robustness is not None:
            figures["robustness.png"] = robustness_figure(evaluation.robustness)
        if examples:
            figures["corruptions.png"] = examples_figure(examples)
        for name, figure in figures.items():
            figure.savefig(output_dir / name, dpi=DOTS_PER_INCH, facecolor="white")
            paths.append(output_dir / name)
    return paths


def accuracy_figure(evaluation: Evaluation) -> Figure:
    """A bar a task, its macro-F1 as a mark on it; the worst task's bar in another colour."""
    tasks, worst, mean = evaluation.tasks, evaluation.worst_task, evaluation.mean_accuracy
    group = evaluation.worst_group
    note = ""
    if group is not None:
        note = f", worst group {group.accuracy:.1%} (group {group.group} of {short_name(group.task)})"
    subtitle = f"Mean {mean:.1%}, worst task {worst.accuracy:.1%} ({short_name(worst.name)}){note}."
    figure = new_figure("Test accuracy of each task", subtitle, height=2.2 + 0.42 * len(tasks))
    axes = figure.subplots()
    places = np.arange(len(tasks))
    values = [task.accuracy for task in tasks]
    axes.barh(places, values, height=0.62, color=[ORANGE if task is worst else BLUE for task in tasks])
    axes.plot([task.macro_f1 for task in tasks], places, "D", color="white", markeredgecolor="black", markersize=6)
    axes.axvline(mean, color=GREY, linestyle=(0, (5, 4)), linewidth=1.2)
    for place, task in enumerate(tasks):
        if not np.isnan(task.accuracy):
            end = np.nanmax([task.accuracy, task.macro_f1])
            text = axes.annotate(f"{task.accuracy:.1%}", (end, place), (9, 0), textcoords="offset points", va="center")
            text.set_bbox({"color": "white", "pad": 1})  # the line of the mean may pass behind it
    axes.set_yticks(places, [short_name(task.name) for task in tasks])
    highest = np.nanmax([each for task in tasks for each in (task.accuracy, task.macro_f1)])
    axes.set(xlim=(0, 1.13 * max(highest, 0.01)), xlabel="accuracy (bar), macro-F1 (diamond)")
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.text(mean, 1.02, "mean", color=GREY, ha="center", va="bottom", transform=axes.get_xaxis_transform())
    return figure


def confusion_figure(evaluation: Evaluation) -> Figure:
    """Images of the worst task by true and predicted class; of many classes those that are confused most."""
    task = evaluation.worst_task
    chosen = most_confused_classes(task.confusion, SHOWN_CLASSES)
    matrix = task.confusion[np.ix_(chosen, chosen)]
    names = [short_name(task.class_names[each], 20) for each in chosen]
    columns, note = names, "Rows add up to a class's test images."
    if len(chosen) < len(task.class_names):
        rest = task.confusion[chosen].sum(axis=1) - matrix.sum(axis=1)
        matrix, columns = np.column_stack([matrix, rest]), [*names, "any other"]
        note = f"The {len(chosen)} of {len(task.class_names)} classes with the most frequent confusions. {note}"
    title = f"Worst task, {short_name(task.name, 30)}: what is taken for what"
    figure = new_figure(title, note, height=4.4 + 0.24 * len(chosen))
    axes = figure.subplots()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    shares = matrix / np.maximum(task.confusion[chosen].sum(axis=1, keepdims=True), 1)
    cells = axes.pcolormesh(shares, cmap="Blues", norm=PowerNorm(0.6, 0, 1), edgecolors="white", linewidth=0.8)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=50, ha="right", rotation_mode="anchor", size=9.5)
    axes.set_yticks(np.arange(len(names)) + 0.5, names, size=9.5)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    for (row, column), count in np.ndenumerate(matrix):
        if count > 0:
            colour = "white" if shares[row, column] > 0.45 else "#333333"
            axes.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", size=9, color=colour)
    bar = figure.colorbar(cells, ax=axes, shrink=0.6, aspect=24, pad=0.02, format=PercentFormatter(1, decimals=0))
    bar.outline.set_visible(False)
    bar.set_label("part of the class's images", labelpad=10)
    return figure


def reliability_figure(evaluation: Evaluation) -> Figure:
    """Confidence against accuracy, a panel a task; the larger a dot, the more images have such a confidence."""
    columns = min(len(evaluation.tasks), 5 if len(evaluation.tasks) > 4 else 4)
    rows = -(-len(evaluation.tasks) // columns)
    figure = new_figure(
        "Is the model as sure as it should be?",
        "Accuracy of images by confidence, 15 bins; the larger a dot, the more images. Below the diagonal: too sure.",
        height=1.55 + rows * (0.8 + 7.6 / max(columns, 2)),
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, task in zip(panels.flat, evaluation.tasks, strict=False):
        bins = task.reliability
        shares = bins.counts / max(1, bins.counts.sum())
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (5, 4)), linewidth=1.2)
        axes.vlines(bins.confidences, bins.confidences, bins.accuracies, color=ORANGE, linewidth=1.2)
        dots = axes.scatter(bins.confidences, bins.accuracies, s=12 + 500 * shares, color=BLUE, alpha=0.85, zorder=3)
        dots.set_clip_on(False)
        heading = f"{short_name(task.name, 80 // columns)}\nECE {task.expected_calibration_error:.1%}"
        axes.set_title(heading, size=11.5, weight="bold", loc="left")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(0.5))
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(labelsize=10)
    _hide_beyond(panels, len(evaluation.tasks))
    figure.supxlabel("confidence", size=12, color="#333333")
    figure.supylabel("accuracy", size=12, color="#333333")
    return figure


def robustness_figure(robustness: Robustness) -> Figure:
    """Mean accuracy over tasks by severity, a panel a corruption, in grey the others."""
    columns = min(len(robustness.corruptions), 5)
    rows = -(-len(robustness.corruptions) // columns)
    subtitle = f"Blue: mean over tasks, at most {robustness.images_per_task} images each. Orange: worst task."
    if len(robustness.corruptions) > 1:
        subtitle += " Grey: the means of the others."
    figure = new_figure("Accuracy under corruptions", subtitle, height=1.7 + 2.35 * rows)
    places = np.arange(len(robustness.severities) + 1)
    clean = np.broadcast_to(robustness.clean, (len(robustness.corruptions), 1, len(robustness.clean)))
    values = np.concatenate([clean, robustness.accuracies], axis=1)  # [K, 1 + S, N]
    means, worst = np.nanmean(values, axis=2), np.nanmin(values, axis=2)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels[0, 0].set_ylim(0, min(1.0, 1.2 * np.nanmax(means) + 0.02))
    panels[0, 0].set_xlim(-0.25, places[-1] + 1.1)
    for number, (axes, name) in enumerate(zip(panels.flat, robustness.corruptions, strict=False)):
        axes.plot(places, np.delete(means, number, axis=0).T, color=LIGHT_GREY, linewidth=0.9)
        axes.plot(places, worst[number], color=ORANGE, linewidth=1.4, marker="o", markersize=3)
        axes.plot(places, means[number], color=BLUE, linewidth=2.2, marker="o", markersize=4.5)
        last = places[-1], means[number, -1]
        text = axes.annotate(f"{last[1]:.0%}", last, (6, 0), textcoords="offset points", va="center", size=10.5)
        text.set(color=BLUE, weight="bold")
        axes.set_title(name.replace("_", " "), size=11.5, weight="bold", loc="left")
        axes.set_xticks(places, ["none", *map(str, robustness.severities)])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _hide_beyond(panels, len(robustness.corruptions))
    figure.supxlabel("severity", size=12, color="#333333")
    figure.supylabel("accuracy", size=12, color="#333333")
    return figure


def examples_figure(examples: Sequence[tuple[str, Sequence[Image.Image]]]) -> Figure:
    """A contact sheet: a column a corruption, severities downwards."""
    blocks = [examples[start : start + 6] for start in range(0, len(examples), 6)]
    depth, columns = max(len(pictures) for _, pictures in examples), min(len(examples), 6)
    figure = new_figure(
        "What the corruptions look like",
        "The first test image; severities 1 to 3 downwards.",
        height=1.1 + len(blocks) * (0.35 + depth * 9.2 / columns),
    )
    panels = figure.subplots(len(blocks) * depth, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, block in enumerate(blocks):
        for column, (title, pictures) in enumerate(block):
            for row, picture in enumerate(pictures):
                panels[number * depth + row, column].imshow(picture, interpolation="nearest")
            panels[number * depth, column].set_title(title.replace("_", " "), size=11, loc="left")
    return figure


def _hide_beyond(panels: np.ndarray, count: int) -> None:
    """Hides the panels [rows, columns] after the first `count`; those above them get their ticks."""
    for place in range(count, panels.size):
        panels.flat[place].set_visible(False)
        panels.flat[place - panels.shape[1]].xaxis.set_tick_params(labelbottom=True)
