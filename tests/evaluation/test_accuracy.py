from __future__ import annotations

import math
import socket

import numpy as np
import pytest
import torch

from jscpt_peft.evaluation import MultiTaskAccuracy, multi_task_accuracy

TASKS = ["art", "clip art", "sketch"]


def slow_accuracy(predictions, references, task_ids, groups, names):
    """The definition, sample by sample."""

    def share(hits):
        return sum(hits) / len(hits) if hits else math.nan

    rows = list(zip(predictions, references, task_ids, groups, strict=True))
    by_task = {name: share([p == r for p, r, t, _ in rows if names[t] == name]) for name in names}
    present = [value for value in by_task.values() if not math.isnan(value)]
    pairs = {(t, g) for _, _, t, g in rows}
    return {
        **{f"accuracy/{name}": value for name, value in by_task.items()},
        "mean_accuracy": sum(present) / len(present),
        "worst_task_accuracy": min(present),
        "worst_group_accuracy": min(share([p == r for p, r, *pair in rows if tuple(pair) == key]) for key in pairs),
    }


def samples(seed, count=200):
    rng = np.random.default_rng(seed)
    columns = {"predictions": 4, "references": 4, "task_ids": len(TASKS), "groups": 5}
    return {name: rng.integers(0, high, count) for name, high in columns.items()}


@pytest.mark.parametrize("seed", range(2))
def test_equals_the_definition(seed):
    columns = samples(seed, count=30)
    metrics = multi_task_accuracy(**columns, task_names=TASKS)
    assert metrics == pytest.approx(slow_accuracy(*(columns[name].tolist() for name in columns), TASKS), abs=1e-12)
    assert all(type(value) is float for value in metrics.values())


def test_worst_group_is_a_pair_of_task_and_group():
    # Group 0 is right in one task and wrong in the other: over tasks its accuracy would be a half.
    metrics = multi_task_accuracy([1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1], ["a", "b"], groups=[0, 0, 1, 1])
    assert metrics["worst_group_accuracy"] == 0.0
    assert metrics["worst_task_accuracy"] == 0.5


@pytest.mark.filterwarnings("error")
def test_task_without_samples_is_nan_and_left_out_of_the_rest():
    metrics = multi_task_accuracy([1, 1], [1, 0], [0, 0], TASKS)
    assert math.isnan(metrics["accuracy/sketch"])
    assert metrics["mean_accuracy"] == metrics["worst_task_accuracy"] == 0.5
    assert "worst_group_accuracy" not in metrics


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"predictions": [], "references": [], "task_ids": []}, "`predictions` is empty"),
        ({"task_ids": [0, 3]}, r"`task_ids` holds 3, but `task_names` has 3 tasks \(0 to 2\)"),
        ({"task_ids": [0, -1]}, "`task_ids` holds -1"),
        ({"references": [1]}, "`references` has 1 samples, `predictions` 2"),
        ({"groups": [1]}, "`groups` has 1 samples"),
        ({"predictions": [[0.1, 0.9], [0.3, 0.7]]}, r"`predictions` has shape \(2, 2\).*argmax"),
        ({"predictions": [0.1, 0.9]}, "`predictions` holds float64"),
        ({"task_names": []}, "`task_names`"),
        ({"task_names": ["a", "a"]}, "`task_names`"),
        ({"task_names": "art"}, "`task_names` is 'art'"),
    ],
)
def test_bad_input_is_named(changed, message):
    arguments = {"predictions": [0, 1], "references": [0, 1], "task_ids": [0, 1], "task_names": TASKS} | changed
    with pytest.raises(ValueError, match=message):
        multi_task_accuracy(**arguments)


def test_metric_in_batches_equals_the_function_without_network_or_files(monkeypatch, tmp_path):
    monkeypatch.setattr(socket.socket, "connect", None)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "metrics"))
    columns = samples(3)
    metric = MultiTaskAccuracy(TASKS)
    for _ in range(2):  # the second time shows that compute starts afresh
        for start in range(0, 200, 64):
            batch = {name: torch.from_numpy(column[start : start + 64]) for name, column in columns.items()}
            metric.add_batch(**batch)
        assert metric.compute() == multi_task_accuracy(**columns, task_names=TASKS)
    assert metric.compute(**columns) == multi_task_accuracy(**columns, task_names=TASKS)
    assert list(tmp_path.iterdir()) == []


def test_metric_refuses_what_the_function_refuses_and_recovers():
    metric = MultiTaskAccuracy(TASKS)
    with pytest.raises(ValueError, match="`add_batch`"):
        metric.compute()
    metric.add_batch(predictions=[1], references=[1], task_ids=[7])
    with pytest.raises(ValueError, match="`task_ids` holds 7"):
        metric.compute()
    metric.add_batch(predictions=[1], references=[1], task_ids=[0], groups=[0])
    metric.add_batch(predictions=[1], references=[1], task_ids=[0])
    with pytest.raises(ValueError, match="`groups` was given for 1 of 2"):
        metric.compute()
    with pytest.raises(ValueError, match="`references` has 2 samples"):
        metric.add_batch(predictions=[1], references=[1, 2], task_ids=[0])
    metric.add_batch(predictions=[1], references=[1], task_ids=[0])
    assert metric.compute()["mean_accuracy"] == 1.0
