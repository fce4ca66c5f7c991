"""`--report_to tensorboard` on the command line: one place for all events, the output directory."""

from __future__ import annotations

import json

import pytest
import train
from PIL import Image

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

QUICK = ["--max_steps", "2", "--lower_steps", "2", "--per_device_train_batch_size", "1", "--use_cpu"]
QUICK += ["--num_shared_tokens", "1", "--num_task_tokens", "1", "--logging_steps", "1", "--report_to", "tensorboard"]


@pytest.fixture
def pictures(tmp_path):
    for task in ("my photos", "scans"):
        for name, colour in {"sky": "blue", "red things": "red"}.items():
            folder = tmp_path / "pictures" / task / name
            folder.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (40 + number, 40), colour).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_events_of_a_command_are_in_its_output_directory(pictures, tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    train.main(["--task_set", "folder", "--data_root", str(pictures), "--output_dir", str(output), *QUICK])
    assert list(elsewhere.iterdir()) == []
    scalars = {}
    for file in output.rglob("events.out.tfevents.*"):
        events = event_accumulator.EventAccumulator(str(file))
        events.Reload()
        scalars |= {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(scalars["train/weight/my photos"]) == 2
    assert len(scalars["train/scheduler/hypergradient_norm"]) == 1
    results = json.loads((output / "results.json").read_text("utf-8"))
    trained = {name: row["trained"] for name, row in results["tasks"].items()}
    # The accuracies after training, not those of zero-shot CLIP.
    assert {name: scalars[f"test/accuracy/{name}"] for name in trained} == {
        name: [pytest.approx(accuracy)] for name, accuracy in trained.items()
    }
