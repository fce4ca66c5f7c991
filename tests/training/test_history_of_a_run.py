"""The history of a run tells what the run did: its rows against the same quantities computed by another path."""

from __future__ import annotations

import numpy as np
import prompted
import pytest
import small_run
import torch
from full_disk import no_file_larger_than
from matplotlib.figure import Figure
from transformers import TrainerCallback

from jscpt_peft.evaluation import draw_figures, history_arrays, read_history
from jscpt_peft.training.step_log import HISTORY_FILE, StepLog

TASKS = list(prompted.TASKS)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


class Remember(TrainerCallback):
    """The adapter's parameters before every step."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, _args, _state, _control, model=None, **_):
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})


def test_losses_effects_affinities_and_cosines_are_those_of_separate_backwards(tmp_path):
    """What Figs. 1(c), 4 and 5 show, at every step of a run whose parameters and Ω move."""
    before = Remember()
    model = prompted.prompted_clip(torch.float64)
    run = small_run.trainer(tmp_path, model, callbacks=[before], max_steps=5, affinity="unclipped")
    run.train()
    arrays = history_arrays(read_history(tmp_path / "scheduler_history.jsonl"))

    again, batches = prompted.prompted_clip(torch.float64), small_run.batches_of(run, 5)
    for step, parameters in enumerate(before.steps):
        again.load_state_dict(parameters, strict=False)
        losses, references, gradients = (each.numpy() for each in prompted.task_by_task(again, batches[step]))
        norms = np.linalg.norm(gradients, axis=1)
        products = gradients @ gradients.T
        affinity = products / norms**2  # column j by the norm of g_j
        np.fill_diagonal(affinity, 0)
        expected = {
            "loss": losses,
            "causal_effect": sigmoid(np.exp(references - losses)),
            "gradient_cosine": products / np.outer(norms, norms),
            "affinity": affinity,
        }
        for name, values in expected.items():
            np.testing.assert_allclose(arrays[name][step], values, rtol=1e-4, atol=1e-6, err_msg=f"{name}, {step}")
    assert np.ptp(arrays["loss"], axis=0).min() > 1e-3


@pytest.mark.parametrize("options", [{}, {"task_scheduling": False}, {"gradient_aggregator": "cagrad"}], ids=str)
def test_every_row_explains_its_own_weights(tmp_path, options):
    """Eq. 6 from the row's own columns, in a run where Ω moves far at every second step."""
    if "gradient_aggregator" in options:
        pytest.importorskip("torchjd")
    run = small_run.trainer(tmp_path, max_steps=5, neumann_terms=0, scheduler_learning_rate=0.5, **options)
    run.train()
    arrays = history_arrays(read_history(tmp_path / "scheduler_history.jsonl"))
    prompt = sigmoid(arrays["alpha"] * arrays["causal_effect"])
    if "gradient_aggregator" in options:
        task = arrays["task_factor"]  # comes from all the gradients, of which the row holds but the cosines
    else:
        others = np.where(np.eye(3, dtype=bool), np.nan, arrays["affinity"])
        task = sigmoid(arrays["beta"] * np.nanmean(others, axis=1)) if not options else np.ones((5, 3))
    weights = prompt * task
    expected = {"prompt_factor": prompt, "task_factor": task}
    expected["weight"] = weights * 3 / np.abs(weights).sum(axis=1, keepdims=True)
    for name, values in expected.items():
        np.testing.assert_allclose(arrays[name], values, rtol=1e-5, err_msg=name)
    for name in ("alpha", "beta"):
        np.testing.assert_array_equal(arrays[f"{name}_after"][:-1], arrays[name][1:])
        learned = getattr(run.weighting.scheduler, name).detach().numpy()
        np.testing.assert_array_equal(arrays[f"{name}_after"][-1], learned)
    moved = (arrays["alpha_after"] != arrays["alpha"]).any(axis=1)
    assert moved.tolist() == arrays["scheduler_step"].tolist() == [False, True, False, True, False]


def test_a_task_that_is_not_finite_is_marked_counted_and_has_no_relations(tmp_path, monkeypatch):
    run = small_run.trainer(tmp_path, max_steps=4, logging_steps=2, neumann_terms=0)
    run.train_dataset = small_run.Spoiled(run.train_dataset)
    with pytest.raises(FloatingPointError, match="ends with step 4, but tasks were not finite in the last 4 steps"):
        run.train()
    rows = read_history(tmp_path / "scheduler_history.jsonl")
    for row in rows:
        assert row["nonfinite"] == [False, True, False]
        assert row["weight"][1] == 0
        for name in ("loss", "causal_effect", "prompt_factor", "task_factor"):
            assert [value is None for value in row[name]] == [False, True, False], name
        for name in ("affinity", "gradient_cosine"):
            known = [[value is not None for value in line] for line in row[name]]
            assert known == [[True, False, True], [False] * 3, [True, False, True]], name
    logs = [entry for entry in run.state.log_history if "weight/photo" in entry]
    assert [entry[f"nonfinite_steps/{TASKS[1]}"] for entry in logs] == [2, 4]
    assert not any(f"nonfinite_steps/{task}" in entry for entry in logs for task in (TASKS[0], TASKS[2]))
    affinity = np.array([row["affinity"][2][0] for row in rows])  # the only other task's
    assert [entry["affinity/photo"] for entry in logs] == pytest.approx(affinity.reshape(2, 2).mean(1).tolist())
    monkeypatch.setattr(Figure, "set_layout_engine", lambda *_, **__: None)  # it takes seconds
    draw_figures(tmp_path / "scheduler_history.jsonl", tmp_path / "pictures")


def test_counts_of_steps_that_were_not_finite_go_on_after_a_resume(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learn_scheduler": False}
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        run = small_run.trainer(tmp_path, **options)
        run.train_dataset = small_run.Spoiled(run.train_dataset, lambda draw: draw // 2 in (0, 2))
        run.train(resume_from_checkpoint=checkpoint)
        counts = [entry.get(f"nonfinite_steps/{TASKS[1]}") for entry in run.state.log_history if "loss" in entry]
        assert counts == [1, 1, 2, 2]


# ---- a full disk, and a file that was damaged -----------------------------------------------------------------------


def log_steps(log, steps):
    """Appends steps whose loss is their number."""
    vector, matrix = torch.ones(3), torch.eye(3)
    nonfinite = torch.tensor([False, False, True])
    for step in steps:
        row = {"step": step, "epoch": step / 10, "loss": vector * step, "weight": vector, "nonfinite": nonfinite}
        log.append({**row, "affinity": matrix, "gradient_norm": vector.norm(), "scheduler": None})


@pytest.mark.parametrize("rows_that_fit", [0, 0.5, 2.5])
def test_a_full_disk_loses_and_doubles_no_row(tmp_path, caplog, rows_that_fit):
    path = tmp_path / HISTORY_FILE
    log = StepLog(TASKS, path)
    log_steps(log, [1])
    log.flush()
    log_steps(log, [2, 3, 4])
    with no_file_larger_than(int((1 + rows_that_fit) * path.stat().st_size)):
        log.flush()
    assert "its rows are kept in memory until it can be" in caplog.text
    log_steps(log, [5])
    assert log.drain()[f"nonfinite_steps/{TASKS[2]}"] == 5
    rows = read_history(path)
    assert [row["loss"] for row in rows] == [[row["step"]] * 3 for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
