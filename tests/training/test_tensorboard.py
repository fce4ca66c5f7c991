"""`--report_to tensorboard`: what Trainer's own callback writes of our logs."""

from __future__ import annotations

import prompted
import pytest
import small_run
import torch
from transformers.integrations.integration_utils import rewrite_logs

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

# As many classes as the pictures of `small_run` have.
TASKS = dict(zip(("real world", "cliparts/b&w", "Zürich – Skizzen"), prompted.TASKS.values(), strict=True))


def written_scalars(directory) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every tag in the event files below `directory`."""
    (file,) = directory.rglob("events.out.tfevents.*")
    events = event_accumulator.EventAccumulator(str(file), size_guidance={event_accumulator.SCALARS: 0})
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_log_is_an_event_under_its_name_at_its_step(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    model = prompted.prompted_clip(torch.float32, tasks=TASKS)
    options = {"report_to": ["tensorboard"], "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    run = small_run.trainer(tmp_path, model, **options)
    run.train()

    expected: dict[str, list[tuple[int, float]]] = {}
    for entry in run.state.log_history:
        for tag, value in rewrite_logs({name: each for name, each in entry.items() if name != "step"}).items():
            expected.setdefault(tag, []).append((entry["step"], value))
    written = written_scalars(tmp_path)
    assert written.keys() == expected.keys() >= {f"train/weight/{task}" for task in TASKS}
    for tag, events in expected.items():
        assert [step for step, _ in written[tag]] == [step for step, _ in events], tag
        assert [value for _, value in written[tag]] == pytest.approx([value for _, value in events], rel=1e-6), tag
