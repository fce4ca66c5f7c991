"""The figures of an evaluation: accuracies, the worst task's confusion, reliability, robustness, the corruptions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.artist import setp
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from .confusion import most_confused_classes
from .evaluation import Evaluation, Robustness
from .heat_maps import draw_cells, draw_colour_bar
from .style import COLOURS, DASHED, GREY, LIGHT_GREY, label_axes, new_figure, panels_in_rows, short_name, write_figures

SHOWN_CLASSES = 20
BLUE, ORANGE = COLOURS[:2]
PER_CENT = PercentFormatter(1, decimals=0)


def draw_evaluation(
    evaluation: Evaluation,
    output_dir: str | os.PathLike,
    examples: Sequence[tuple[str, Sequence[Image.Image]]] = (),
) -> list[Path]:
    """Draws the figures of an evaluation into `output_dir`.

    They are `accuracy.png`, `confusion.png` (of the worst task) and `reliability.png`; with `evaluation.robustness`
    also `robustness.png`, and with `examples` also `corruptions.png`.

    Args:
        evaluation: what to draw.
        output_dir: made if need be.
        examples: images to show as (title, one image per severity); of an image as it is, a single one.

    Returns:
        The paths.
    """
    makers = {
        "accuracy.png": partial(accuracy_figure, evaluation),
        "confusion.png": partial(confusion_figure, evaluation),
        "reliability.png": partial(reliability_figure, evaluation),
    }
    if evaluation.robustness is not None:
        makers["robustness.png"] = partial(robustness_figure, evaluation.robustness)
    if examples:
        makers["corruptions.png"] = partial(examples_figure, examples)
    return write_figures(output_dir, makers)


def accuracy_figure(evaluation: Evaluation) -> Figure:
    """A bar per task, its macro-F1 as a mark on it; the worst task's bar in another colour."""
    tasks, worst, group = evaluation.tasks, evaluation.worst_task, evaluation.worst_group
    mean, places = evaluation.means["accuracy"], np.arange(len(tasks))
    note = f"Mean {mean:.1%}, worst task {tasks['accuracy'][worst]:.1%} ({short_name(worst)})"
    if group is not None:
        note += f", worst group {group['accuracy']:.1%} (group {group['group']} of {short_name(group['task'])})"
    figure = new_figure("Test accuracy of each task", f"{note}.", height=2.2 + 0.42 * len(tasks))
    axes, ends = figure.subplots(), tasks[["accuracy", "macro_f1"]].max(axis=1)
    axes.barh(places, tasks["accuracy"], height=0.62, color=np.where(tasks.index == worst, ORANGE, BLUE))
    axes.plot(tasks["macro_f1"], places, "D", color="white", markeredgecolor="black", markersize=6)
    axes.axvline(mean, **DASHED)
    axes.text(mean, 1.02, "mean", color=GREY, ha="center", va="bottom", transform=axes.get_xaxis_transform())
    for place, accuracy, end in zip(places, tasks["accuracy"], ends, strict=True):
        if not np.isnan(accuracy):
            text = axes.annotate(f"{accuracy:.1%}", (end, place), (9, 0), textcoords="offset points", va="center")
            text.set(bbox={"color": "white", "pad": 1}, zorder=3)  # the line of the mean may pass behind it
    axes.set_yticks(places, [short_name(name) for name in tasks.index])
    axes.set(xlim=(0, 1.13 * max(ends.max(), 0.01)), ylim=(len(tasks) - 0.4, -0.6))
    axes.set_xlabel("accuracy (bar), macro-F1 (diamond)")
    axes.xaxis.set_major_formatter(PER_CENT)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure


def confusion_figure(evaluation: Evaluation) -> Figure:
    """Images of the worst task by true and predicted class; of many classes those that are confused most."""
    confusion, classes = evaluation.confusions[evaluation.worst_task], evaluation.class_names[evaluation.worst_task]
    chosen = most_confused_classes(confusion, SHOWN_CLASSES)
    matrix, totals = confusion[np.ix_(chosen, chosen)], confusion[chosen].sum(axis=1)
    names = [short_name(classes[each], 20) for each in chosen]
    columns, note = names, "Rows add up to a class's test images."
    if len(chosen) < len(classes):
        matrix, columns = np.column_stack([matrix, totals - matrix.sum(axis=1)]), [*names, "any other"]
        note = f"The {len(chosen)} of {len(classes)} classes with the most frequent confusions. {note}"
    title = f"Worst task, {short_name(evaluation.worst_task, 30)}: what is taken for what"
    figure = new_figure(title, note, height=4.4 + 0.24 * len(chosen))
    axes, shares = figure.subplots(), matrix / np.maximum(totals[:, None], 1)
    counts = np.where(matrix > 0, matrix.astype(str), "")
    cells = draw_cells(axes, shares, names, columns, counts, cmap="Blues", norm=PowerNorm(0.6, 0, 1))
    axes.set(aspect="equal", xlabel="predicted class", ylabel="true class")
    axes.tick_params(labelsize=9.5)
    setp(axes.get_xticklabels(), rotation=50, ha="right", rotation_mode="anchor")
    draw_colour_bar(figure, cells, axes, "part of the class's images", shrink=0.6, aspect=24, format=PER_CENT)
    return figure


def reliability_figure(evaluation: Evaluation) -> Figure:
    """Confidence against accuracy, a panel per task; the larger a dot, the more images have such a confidence."""
    count = len(evaluation.tasks)
    columns = min(count, 5 if count > 4 else 4)
    figure = new_figure(
        "Is the model as sure as it should be?",
        "Accuracy of images by confidence, 15 bins; the larger a dot, the more images. Below the diagonal: too sure.",
        height=1.55 + -(-count // columns) * (0.8 + 7.6 / max(columns, 2)),
    )
    panels = panels_in_rows(figure, count, columns)
    panels[0].set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    panels[0].xaxis.set_major_formatter(PER_CENT)
    panels[0].yaxis.set_major_formatter(PER_CENT)
    for axes, (name, bins) in zip(panels, evaluation.reliabilities.items(), strict=True):
        axes.plot([0, 1], [0, 1], **DASHED)
        axes.vlines(bins.confidences, bins.confidences, bins.accuracies, color=ORANGE, linewidth=1.2)
        sizes = 12 + 500 * bins.counts / max(1, bins.counts.sum())
        axes.scatter(bins.confidences, bins.accuracies, s=sizes, color=BLUE, alpha=0.85, zorder=3, clip_on=False)
        axes.set_title(f"{short_name(name, 80 // columns)}\nECE {bins.expected_calibration_error:.1%}")
        axes.set_aspect("equal")
        axes.tick_params(labelsize=10)
    label_axes(figure, "confidence", "accuracy")
    return figure


def robustness_figure(robustness: Robustness) -> Figure:
    """Mean accuracy over tasks by severity, a panel per corruption, in grey the others."""
    means, worst = robustness.means, robustness.accuracies.min(axis=1).unstack(sort=False)
    means.insert(0, "none", robustness.clean.mean())
    worst.insert(0, "none", robustness.clean.min())
    columns, places = min(len(means), 5), np.arange(means.shape[1])
    note = f"Blue: mean over tasks, at most {robustness.images_per_task} images each. Orange: worst task."
    if len(means) > 1:
        note += " Grey: the means of the others."
    figure = new_figure("Accuracy under corruptions", note, height=1.7 + 2.35 * -(-len(means) // columns))
    panels = panels_in_rows(figure, len(means), columns)
    panels[0].set(xlim=(-0.25, places[-1] + 1.1), ylim=(0, min(1.0, 1.2 * means.max(axis=None) + 0.02)))
    panels[0].yaxis.set_major_formatter(PER_CENT)
    panels[0].set_xticks(places, means.columns)
    for axes, (name, line) in zip(panels, means.iterrows(), strict=True):
        axes.plot(places, means.drop(index=name).T, color=LIGHT_GREY, linewidth=0.9)
        axes.plot(places, worst.loc[name], color=ORANGE, linewidth=1.4, marker="o", markersize=3)
        axes.plot(places, line, color=BLUE, linewidth=2.2, marker="o", markersize=4.5)
        text = axes.text(places[-1] + 0.2, line.iloc[-1], f"{line.iloc[-1]:.0%}", va="center", size=10.5)
        text.set(color=BLUE, weight="bold")
        axes.set_title(name.replace("_", " "))
    label_axes(figure, "severity", "accuracy")
    return figure


def examples_figure(examples: Sequence[tuple[str, Sequence[Image.Image]]]) -> Figure:
    """A contact sheet: a column per corruption, severities downwards."""
    depth, columns = max(len(images) for _, images in examples), min(len(examples), 6)
    blocks = -(-len(examples) // columns)
    figure = new_figure(
        "What the corruptions look like",
        "The first test image; severities 1 to 3 downwards.",
        height=1.1 + blocks * (0.35 + depth * 9.2 / columns),
    )
    panels = figure.subplots(blocks * depth, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (title, images) in enumerate(examples):
        column = panels[number // columns * depth :, number % columns]
        column[0].set_title(title.replace("_", " "), weight="normal")
        for axes, image in zip(column, images, strict=False):
            axes.imshow(image, interpolation="nearest")
    return figure
