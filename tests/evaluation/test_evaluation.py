"""An evaluation's figures, report and pictures."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image
from rich.console import Console

from jscpt_peft.evaluation import (
    Answers,
    Robustness,
    draw_evaluation,
    evaluate_answers,
    evaluation_json,
    evaluation_markdown,
    multi_task_accuracy,
    print_evaluation,
    write_evaluation,
)
from jscpt_peft.evaluation.evaluation_pictures import (
    ORANGE,
    accuracy_figure,
    confusion_figure,
    reliability_figure,
    robustness_figure,
)

CLASSES = {"art": ["cat", "dog"], "[red]a|b[/red]": ["cat", "dog", "fox"], "sketch": ["cat", "dog", "fox", "owl"]}
NAMES = list(CLASSES)


def random_answers(seed=0, count=120, groups=True):
    rng = np.random.default_rng(seed)
    task_ids = rng.integers(0, 3, count)
    sizes = np.array([len(each) for each in CLASSES.values()])[task_ids]
    references = rng.integers(0, sizes)
    logits = rng.normal(size=(count, 4)) + 2 * np.eye(4)[references]
    logits[np.arange(4) >= sizes[:, None]] = -np.inf
    return logits, references, task_ids, rng.integers(0, 3, count) if groups else None


def robustness(names=NAMES):
    values = np.linspace(0.9, 0.1, 6 * len(names)).reshape(2, 3, len(names))
    return Robustness(50, tuple(names), ("fog", "jpeg"), (1, 2, 3), np.full(len(names), 0.95), values)


def evaluation(groups=True, under=None):
    answers = Answers.from_logits(*random_answers(groups=groups))
    return evaluate_answers(answers, CLASSES, {"method": "zero_shot", "adapter": None}, "mine", under)


def test_confidence_is_the_softmax_of_the_highest_logit():
    logits, *rest = random_answers()
    logits[0] *= 1000  # no overflow
    with np.errstate(all="raise", under="ignore"):
        answers = Answers.from_logits(logits, *rest)
    exponentials = np.exp(logits[1:])
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert answers.confidences[1:] == pytest.approx(shares.max(axis=1), abs=1e-12)
    assert answers.predictions.tolist() == logits.argmax(axis=1).tolist()
    for broken in (math.nan, math.inf):
        logits[5, 1] = broken
        with pytest.raises(ValueError, match=r"the logits of 1 of 120 images are not finite \(the first is image 5"):
            Answers.from_logits(logits, *rest)


def test_figures_are_those_of_each_task_alone():
    logits, references, task_ids, groups = random_answers()
    found = evaluation()
    predictions = logits.argmax(axis=1)
    expected = multi_task_accuracy(predictions, references, task_ids, NAMES, groups)
    for number, task in enumerate(found.tasks):
        own = task_ids == number
        alone = Answers.from_logits(logits[own], references[own], 0 * task_ids[own])
        (single,) = evaluate_answers(alone, {task.name: CLASSES[task.name]}, {}, "x").tasks
        assert task.accuracy == single.accuracy == expected[f"accuracy/{task.name}"]
        assert (task.macro_f1, task.num_images) == (single.macro_f1, own.sum())
        assert task.expected_calibration_error == single.expected_calibration_error
        assert np.trace(task.confusion) / own.sum() == pytest.approx(task.accuracy)
    assert found.mean_accuracy == expected["mean_accuracy"]
    assert found.worst_task.accuracy == expected["worst_task_accuracy"]
    assert found.worst_group.accuracy == expected["worst_group_accuracy"]
    assert sum(group.num_images for group in found.groups) == 120
    chosen = (task_ids == NAMES.index(found.worst_group.task)) & (groups == found.worst_group.group)
    assert (predictions == references)[chosen].mean() == found.worst_group.accuracy
    assert evaluation(groups=False).worst_group is None


def test_robustness_means_count_every_task_the_same():
    values = np.array([[[0.5, 0.1], [0.4, 0.2], [0.0, 1.0]]])
    found = Robustness(9, ("a", "b"), ("fog",), (1, 2, 3), np.array([0.9, 0.7]), values)
    assert found.clean_mean == pytest.approx(0.8)
    assert found.means == pytest.approx(np.array([[0.3, 0.3, 0.5]]))


def test_json_holds_the_numbers_and_all_mistakes(tmp_path):
    found = evaluation(under=robustness())
    json_path, markdown_path = write_evaluation(found, tmp_path / "new")
    content = json.loads(json_path.read_text(encoding="utf-8"))
    assert content == evaluation_json(found)
    assert markdown_path.read_text(encoding="utf-8") == evaluation_markdown(found)
    worst = found.worst_task
    assert content["worst_task"] == {"task": worst.name, "accuracy": worst.accuracy}
    confusion = content["confusion_of_worst_task"]
    assert sum(confusion["images_of_class"].values()) == worst.num_images
    assert sum(each["images"] for each in confusion["mistakes"]) == worst.num_images - np.trace(worst.confusion)
    assert content["robustness"]["corruptions"]["jpeg"]["3"]["tasks"]["sketch"] == pytest.approx(0.1)
    assert content["robustness"]["uncorrupted"]["mean"] == pytest.approx(0.95)
    assert len(content["groups"]) == 9
    without = evaluation_json(evaluation(groups=False))
    assert (without["worst_group"], without["groups"], without["robustness"]) == (None, [], None)


def test_a_task_without_images_is_nan_and_shown_as_such(tmp_path):
    logits, references, task_ids, _ = random_answers()
    kept = task_ids != 2
    found = evaluate_answers(Answers.from_logits(logits[kept], references[kept], task_ids[kept]), CLASSES, {}, "x")
    content = evaluation_json(found)
    assert content["tasks"]["sketch"] == {
        "images": 0,
        "accuracy": None,
        "macro_f1": None,
        "expected_calibration_error": None,
    }
    assert found.mean_accuracy == pytest.approx(np.mean([task.accuracy for task in found.tasks[:2]]))
    assert "| sketch | 0 | n/a | n/a | n/a |" in evaluation_markdown(found)
    assert len(draw_evaluation(found, tmp_path)) == 3


def test_markdown_shows_each_table_with_names_as_they_are():
    text = evaluation_markdown(evaluation(under=robustness()))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| task | images | accuracy | macro-F1 | ECE |"
    assert any(row.startswith(r"| [red]a\|b[/red] | ") for row in rows)
    assert any(row.startswith("| **mean** | **120** | ") for row in rows)
    assert "| corruption | severity 1 | severity 2 | severity 3 | mean |" in rows
    assert "at most 50 images a task (uncorrupted: 95.0)" in text
    assert "method: zero_shot." in text
    assert "****" not in text and "adapter" not in text


def test_printed_tables_hold_the_markdown_cells():
    found = evaluation(under=robustness())
    console = Console(file=io.StringIO(), width=120, color_system=None)
    print_evaluation(found, console)
    printed = console.file.getvalue()
    for task in found.tasks:
        assert task.name in printed
        assert f"{100 * task.macro_f1:.1f}" in printed
    assert f"worst group ({found.worst_group.task}, group {found.worst_group.group})" in printed
    assert "jpeg" in printed


def test_pictures_are_written(tmp_path):
    grey = Image.new("RGB", (20, 10), "grey")
    examples = [("as it is", [grey]), *((f"corruption {number}", [grey] * 3) for number in range(7))]
    paths = draw_evaluation(evaluation(under=robustness()), tmp_path / "new", examples)
    names = ["accuracy.png", "confusion.png", "reliability.png", "robustness.png", "corruptions.png"]
    assert [path.name for path in paths] == names
    for path in paths:
        assert Image.open(path).width == 1800
    assert [path.name for path in draw_evaluation(evaluation(), tmp_path)] == names[:3]


def test_accuracy_bars_are_the_accuracies_and_the_worst_stands_out():
    found = evaluation()
    bars = accuracy_figure(found).axes[0].patches
    assert [bar.get_width() for bar in bars] == [task.accuracy for task in found.tasks]
    assert [bar.get_facecolor() == to_rgba(ORANGE) for bar in bars] == [
        task is found.worst_task for task in found.tasks
    ]


@pytest.mark.parametrize("count", [2, 345])
def test_confusion_picture_accounts_for_every_image_of_the_classes_shown(count):
    rng = np.random.default_rng(0)
    references = rng.integers(0, count, 3000)
    logits = rng.normal(size=(3000, count)) + 3 * np.eye(count)[references]
    names = [f"class {number}" for number in range(count)]
    found = evaluate_answers(Answers.from_logits(logits, references, 0 * references), {"a": names}, {}, "x")
    axes = confusion_figure(found).axes[0]
    shown = [names.index(label.get_text()) for label in axes.get_yticklabels()]
    assert len(shown) == min(count, 20)
    assert sum(int(text.get_text()) for text in axes.texts) == np.isin(references, shown).sum()
    assert [label.get_text() for label in axes.get_xticklabels()][len(shown) :] == (
        ["any other"] if count > 20 else []
    )


def test_reliability_and_robustness_pictures_show_the_values():
    found = evaluation(under=robustness())
    for axes, task in zip(reliability_figure(found).axes, found.tasks, strict=True):
        dots = np.asarray(axes.collections[-1].get_offsets())
        known = task.reliability.counts > 0
        expected = np.stack([task.reliability.confidences, task.reliability.accuracies], axis=1)[known]
        assert dots[known] == pytest.approx(expected)
        assert f"ECE {task.expected_calibration_error:.1%}" in axes.get_title(loc="left")
    for number, axes in enumerate(robustness_figure(robustness()).axes):
        assert axes.lines[-1].get_ydata() == pytest.approx([0.95, *robustness().means[number]])
        assert axes.lines[-2].get_ydata() == pytest.approx([0.95, *robustness().accuracies[number].min(axis=-1)])
