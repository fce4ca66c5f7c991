"""An evaluation's metrics, report and figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import style
from matplotlib.colors import to_rgba
from PIL import Image

from jscpt_peft.evaluation import (
    Predictions,
    Robustness,
    draw_evaluation,
    evaluate_predictions,
    evaluation_json,
    evaluation_markdown,
    multi_task_accuracy,
    write_evaluation,
)
from jscpt_peft.evaluation.evaluation_figures import (
    ORANGE,
    accuracy_figure,
    confusion_figure,
    reliability_figure,
    robustness_figure,
)
from jscpt_peft.evaluation.style import STYLE

CLASSES = {"art": ["cat", "dog"], "[red]a|b[/red]": ["cat", "dog", "fox"], "sketch": ["cat", "dog", "fox", "owl"]}
NAMES = list(CLASSES)


@pytest.fixture(autouse=True)
def styled():
    with style.context(["default", STYLE]):
        yield


def random_predictions(seed=0, count=120, groups=True):
    rng = np.random.default_rng(seed)
    task_ids = rng.integers(0, 3, count)
    sizes = np.array([len(each) for each in CLASSES.values()])[task_ids]
    references = rng.integers(0, sizes)
    logits = rng.normal(size=(count, 4)) + 2 * np.eye(4)[references]
    logits[np.arange(4) >= sizes[:, None]] = -np.inf
    return logits, references, task_ids, rng.integers(0, 3, count) if groups else None


def robustness(names=NAMES, corruptions=("jpeg", "fog")):
    values = iter(np.linspace(0.9, 0.1, 3 * len(names) * len(corruptions)))
    conditions = [(name, severity) for name in corruptions for severity in (1, 2, 3)]
    accuracies = {condition: [next(values) for _ in names] for condition in conditions}
    return Robustness(50, pd.Series(0.95, index=names), pd.DataFrame(accuracies, index=names).T)


def evaluation(groups=True, under=None):
    predictions = Predictions.from_logits(*random_predictions(groups=groups))
    return evaluate_predictions(predictions, CLASSES, {"method": "zero_shot", "adapter": None}, "mine", under)


def test_confidence_is_the_softmax_of_the_highest_logit():
    logits, *rest = random_predictions()
    logits[0] *= 1000  # no overflow
    with np.errstate(all="raise", under="ignore"):
        predictions = Predictions.from_logits(logits, *rest)
    exponentials = np.exp(logits[1:])
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert predictions.confidences[1:] == pytest.approx(shares.max(axis=1), abs=1e-12)
    assert predictions.predictions.tolist() == logits.argmax(axis=1).tolist()
    for broken in (math.nan, math.inf):
        logits[5, 1] = broken
        with pytest.raises(ValueError, match=r"the logits of 1 of 120 images are not finite \(the first is image 5"):
            Predictions.from_logits(logits, *rest)


def test_metrics_are_those_of_each_task_alone():
    logits, references, task_ids, groups = random_predictions()
    found = evaluation()
    predictions = logits.argmax(axis=1)
    expected = multi_task_accuracy(predictions, references, task_ids, NAMES, groups)
    for number, (name, row) in enumerate(found.tasks.iterrows()):
        own = task_ids == number
        alone = Predictions.from_logits(logits[own], references[own], 0 * task_ids[own])
        assert evaluate_predictions(alone, {name: CLASSES[name]}, {}, "x").tasks.loc[name].equals(row)
        assert row["accuracy"] == expected[f"accuracy/{name}"]
        assert np.trace(found.confusions[name]) / own.sum() == pytest.approx(row["accuracy"])
    assert found.means["accuracy"] == pytest.approx(expected["mean_accuracy"], abs=1e-15)
    assert found.tasks["accuracy"][found.worst_task] == expected["worst_task_accuracy"]
    worst = found.worst_group
    assert worst["accuracy"] == expected["worst_group_accuracy"]
    chosen = (task_ids == NAMES.index(worst["task"])) & (groups == worst["group"])
    assert (predictions == references)[chosen].mean() == worst["accuracy"]
    assert found.groups["images"].sum() == 120
    assert evaluation(groups=False).worst_group is None


def test_robustness_means_count_every_task_the_same_and_keep_the_order():
    accuracies = {
        ("jpeg", 1): [0.5, 0.1],
        ("jpeg", 2): [0.4, 0.2],
        ("fog", 1): [0.0, 1.0],
        ("fog", 2): [math.nan, 1.0],
    }
    found = Robustness(9, pd.Series([0.9, 0.7]), pd.DataFrame(accuracies, index=["a", "b"]).T).means
    assert list(found.index) == ["jpeg", "fog"]
    np.testing.assert_allclose(found, [[0.3, 0.3], [0.5, 1.0]])


def test_json_holds_the_numbers_and_all_mistakes(tmp_path):
    found = evaluation(under=robustness())
    json_path, markdown_path = write_evaluation(found, tmp_path / "new")
    content = json.loads(json_path.read_text(encoding="utf-8"))
    assert content == evaluation_json(found)
    assert markdown_path.read_text(encoding="utf-8") == evaluation_markdown(found)
    matrix, row = found.confusions[found.worst_task], found.tasks.loc[found.worst_task]
    assert content["worst_task"] == {"task": found.worst_task, "accuracy": row["accuracy"]}
    assert content["tasks"][found.worst_task] == row.to_dict()
    confusion = content["confusion_of_worst_task"]
    assert sum(confusion["images_of_class"].values()) == row["images"]
    assert sum(each["images"] for each in confusion["mistakes"]) == row["images"] - np.trace(matrix)
    assert list(content["robustness"]["corruptions"]) == ["jpeg", "fog"]
    assert content["robustness"]["corruptions"]["fog"]["3"]["tasks"]["sketch"] == pytest.approx(0.1)
    assert content["robustness"]["mean"] == pytest.approx(0.5)
    assert content["robustness"]["uncorrupted"]["mean"] == pytest.approx(0.95)
    assert len(content["groups"]) == 9
    without = evaluation_json(evaluation(groups=False))
    assert (without["worst_group"], without["groups"], without["robustness"]) == (None, [], None)


def test_a_task_without_images_is_nan_and_shown_as_such(tmp_path):
    logits, references, task_ids, _ = random_predictions()
    kept = task_ids != 2
    predictions = Predictions.from_logits(logits[kept], references[kept], task_ids[kept])
    found = evaluate_predictions(predictions, CLASSES, {}, "x")
    sketch = {"images": 0, "accuracy": None, "macro_f1": None, "expected_calibration_error": None}
    assert evaluation_json(found)["tasks"]["sketch"] == sketch
    assert found.means["accuracy"] == pytest.approx(np.mean(found.tasks["accuracy"].iloc[:2]))
    assert "| sketch | 0 | n/a | n/a | n/a |" in evaluation_markdown(found)
    drawn = [path.name for path in draw_evaluation(found, tmp_path)]
    assert drawn == ["accuracy.png", "confusion.png", "reliability.png"]


def test_markdown_shows_each_table_with_names_as_they_are():
    text = evaluation_markdown(evaluation(under=robustness()))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| task | images | accuracy | macro-F1 | ECE |"
    assert rows[2].startswith(f"| art | {evaluation().tasks['images']['art']} | ")
    assert any(row.startswith(r"| \[red]a\|b\[/red] | ") for row in rows)
    assert any(row.startswith("| **mean** | **120** | ") for row in rows)
    assert "| corruption | severity 1 | severity 2 | severity 3 | mean |" in rows
    assert "at most 50 images per task (uncorrupted: 95.0)" in text
    assert "method: zero_shot." in text
    assert "****" not in text and "adapter" not in text


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_figures_of_what_was_evaluated_are_written(tmp_path):
    grey = Image.new("RGB", (20, 10), "grey")
    examples = [("as it is", [grey]), *((f"corruption {number}", [grey] * 3) for number in range(7))]
    paths = draw_evaluation(evaluation(under=robustness()), tmp_path / "new", examples)
    names = ["accuracy.png", "confusion.png", "reliability.png", "robustness.png", "corruptions.png"]
    assert paths == [tmp_path / "new" / name for name in names]
    for path in paths:
        with Image.open(path) as image:
            assert image.width == 1800


def test_accuracy_bars_are_the_accuracies_and_the_worst_stands_out():
    found = evaluation()
    bars = accuracy_figure(found).axes[0].patches
    assert [bar.get_width() for bar in bars] == found.tasks["accuracy"].tolist()
    highlighted = [name for name, bar in zip(NAMES, bars, strict=True) if bar.get_facecolor() == to_rgba(ORANGE)]
    assert highlighted == [found.worst_task]


@pytest.mark.parametrize("count", [2, 345])
def test_confusion_figure_accounts_for_every_image_of_the_classes_shown(count):
    rng = np.random.default_rng(0)
    references = rng.integers(0, count, 3000)
    logits = rng.normal(size=(3000, count)) + 3 * np.eye(count)[references]
    names = [f"class {number}" for number in range(count)]
    predictions = Predictions.from_logits(logits, references, 0 * references)
    axes = confusion_figure(evaluate_predictions(predictions, {"a": names}, {}, "x")).axes[0]
    shown = [names.index(label.get_text()) for label in axes.get_yticklabels()]
    assert len(shown) == min(count, 20)
    assert sum(int(text.get_text()) for text in axes.texts) == np.isin(references, shown).sum()
    rest = [label.get_text() for label in axes.get_xticklabels()][len(shown) :]
    assert rest == (["any other"] if count > 20 else [])


def test_reliability_and_robustness_figures_show_the_values():
    found = evaluation(under=robustness())
    for axes, (name, bins) in zip(reliability_figure(found).axes, found.reliabilities.items(), strict=True):
        dots, known = np.asarray(axes.collections[-1].get_offsets()), bins.counts > 0
        assert dots[known] == pytest.approx(np.stack([bins.confidences, bins.accuracies], axis=1)[known])
        assert axes.get_title(loc="left") == f"{name}\nECE {bins.expected_calibration_error:.1%}"
    for axes, (name, means) in zip(
        robustness_figure(found.robustness).axes, found.robustness.means.iterrows(), strict=True
    ):
        assert axes.get_title(loc="left") == name
        assert axes.lines[-1].get_ydata() == pytest.approx([0.95, *means])
        worst = found.robustness.accuracies.loc[name].min(axis=1)
        assert axes.lines[-2].get_ydata() == pytest.approx([0.95, *worst])
