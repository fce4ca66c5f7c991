"""Several processes train as one with their batches together would, and end well when one of them does not."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import processes
import pytest
import torch

from jscpt_peft.evaluation import read_history

# Whoever runs alone takes the batches of all: K processes with batch B against one with batch K·B. What methods and
# weightings add to that is in `tests/model/test_methods.py`.
COMMON = {"max_steps": 4, "lower_steps": 2}
VARIANTS = {
    "few images": {
        "sizes": {"train": [1, 3, 2], "dev": [1, 1, 1], "validation": [1, 2, 2]},
        "hvp": "finite_difference",
    },
    "accumulation": {
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "logging_steps": 3,
        "max_grad_norm": 1.0,
    },
    "chunks, calibrated": {
        "hypergradient_chunk_size": 1,
        "hypergradient_batch_size": 2,
        "dev_loss": "calibrated",
        "gradient_aggregator": "gradvac",
        "model": {"towers": "vision"},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs(variant, count)`: results of one process, of two, or of four on few images, which share 4 images per task.

    Every number of processes is started once, and trains its variants one after the other.
    """
    root = tmp_path_factory.mktemp("runs")
    started = []
    for count, variants in {1: VARIANTS, 2: VARIANTS, 4: ["few images"]}.items():
        shared = {"per_device_train_batch_size": 4 // count, "dev_batch_size": 4 // count}
        programs = [
            {"folder": str(root / variant / str(count)), **COMMON, **shared, **VARIANTS[variant]}
            for variant in variants
        ]
        started += processes.launch(count, root / str(count), [str(processes.PROGRAM), json.dumps(programs)])
    logs = [path for count in (1, 2, 4) for path in sorted((root / str(count)).glob("*.log"))]
    codes = processes.wait(started)
    assert not any(codes), "\n".join(path.read_text()[-3000:] for path in logs)

    def results(variant: str, count: int) -> list[dict]:
        return [torch.load(results.folder(variant, count) / f"{rank}.pt", weights_only=True) for rank in range(count)]

    results.folder = lambda variant, count: root / variant / str(count)
    return results


def same(one: dict, other: dict) -> None:
    for part in ("parameters", "omega"):
        for name, value in one[part].items():
            torch.testing.assert_close(other[part][name], value, atol=1e-10, rtol=1e-10, msg=f"{part} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_are_one_with_the_union_of_their_batches(runs, variant):
    (one,), two = runs(variant, 1), runs(variant, 2)
    same(one, two[0])
    assert one["updates"] == two[0]["updates"] == 2
    assert one["omega"]["alpha"].dtype == torch.float64
    assert (one["omega"]["alpha"] - 1).abs().min() > 1e-4
    for name, value in one["metrics"].items():
        assert two[0]["metrics"][name] == pytest.approx(value, abs=1e-6), name
    histories = [read_history(runs.folder(variant, count) / "run" / "scheduler_history.jsonl") for count in (1, 2)]
    for alone, together in zip(*histories, strict=True):
        for name in ("loss", "causal_effect", "weight", "alpha_after", "beta_after"):
            assert together[name] == pytest.approx(alone[name], abs=1e-9), name
        for row, expected in zip(together["affinity"], alone["affinity"], strict=True):
            assert row == pytest.approx(expected, abs=1e-9)
    for part in ("parameters", "omega"):  # the same bits in both
        for name, value in two[0][part].items():
            assert torch.equal(value, two[1][part][name]), f"{part} {name}"


@pytest.mark.slow
def test_one_communication_a_lower_step(runs):
    """From one step's end to the next one's.

    A step that updates Ω adds the dev gradient, the counts of the Hessian's images, and one for each product; after
    one that is logged, `Trainer` gathers the loss.
    """
    omega, logged = 2 + 3, 2
    for result in runs("accumulation", 2):  # the third step is logged
        assert result["communications"] == [1, 1 + omega, 1, logged + 1 + omega]
    for result in runs("few images", 2):  # every step is
        assert result["communications"] == [1, logged + 1 + omega, logged + 1, logged + 1 + omega]


@pytest.mark.slow
def test_more_processes_than_images_and_none_counted_twice(runs):
    """Four processes, tasks of 1, 3 and 2 training images, 5 images to evaluate in batches of 4 a process."""
    (one,), four = runs("few images", 1), runs("few images", 4)
    same(one, four[0])
    for result in four:
        assert len(result["labels"]) == 5
        assert torch.equal(result["labels"], one["labels"])
        torch.testing.assert_close(result["predictions"], one["predictions"], atol=1e-6, rtol=1e-6)
        assert result["metrics"]["test_loss"] == pytest.approx(one["metrics"]["test_loss"], abs=1e-6)


FAULTY = {"max_steps": 50, "lower_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


@pytest.mark.slow
def test_a_process_that_dies_and_the_resumed_run_which_is_the_one_that_never_stopped(tmp_path):
    """From the middle of an epoch."""
    options = {**FAULTY, "max_steps": 5, "per_device_train_batch_size": 1, "save_steps": 3, "dtype": "float32"}
    options |= {"optim": "adamw_torch", "learning_rate": 0.01, "gradient_aggregator": "pcgrad"}
    options |= {"dataloader_num_workers": 1}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = processes.run(2, whole, **options)
    survivor, victim = processes.start(2, broken, **options, fault="SIGKILL", step=4, rank=1, ddp_timeout=30)
    assert victim.wait(processes.TIMEOUT) == -signal.SIGKILL
    start = time.monotonic()
    assert survivor.wait(60) not in (0, None)
    assert time.monotonic() - start < 45
    said = processes.output(broken, 0)
    assert "ConnectionError: process 0 of 2 has lost another one" in said
    assert "`resume_from_checkpoint=True`" in said
    resumed = processes.run(2, broken, **options, resume=True)
    assert f"Going on from {broken / 'run' / 'checkpoint-3'}" in processes.output(broken, 0)
    for before, after in zip(expected, resumed, strict=True):
        for part in ("parameters", "omega", "optimizer"):
            torch.testing.assert_close(after[part], before[part], atol=0, rtol=0)
    histories = [read_history(folder / "run" / "scheduler_history.jsonl") for folder in (whole, broken)]
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_a_process_that_hangs(tmp_path):
    both = processes.start(2, tmp_path, **FAULTY, fault="slow", step=3, rank=1, ddp_timeout=5)
    try:
        assert both[0].wait(processes.TIMEOUT) != 0
        said = processes.output(tmp_path, 0)
        assert "has lost another one, which ended or did not answer within 5 seconds (`ddp_timeout`)" in said
        assert json.loads((tmp_path / "run" / "checkpoint-2" / "checkpoint.json").read_text())["files"]
    finally:
        both[1].kill()


@pytest.mark.slow
def test_a_task_that_is_not_finite_in_one_process(tmp_path):
    """It has no weight in any, and all stop at the same step with the same state saved."""
    both = processes.start(2, tmp_path, **FAULTY, max_nonfinite_steps=3, fault="infinite images", step=3, rank=1)
    assert [process.wait(processes.TIMEOUT) for process in both] == [1, 1]
    for rank in (0, 1):
        said = processes.output(tmp_path, rank)
        assert "FloatingPointError: The loss of ['clipart'] was not finite in 3 steps in a row" in said
        assert "The last good state, of step 2, is saved" in said
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["checkpoint-2"]


@pytest.mark.slow
def test_an_error_of_the_first_process_is_that_of_all(tmp_path):
    """None waits for another one: here a checkpoint that is not there."""
    both = processes.start(2, tmp_path, **FAULTY, resume=str(tmp_path / "nothing"))
    assert [process.wait(processes.TIMEOUT) for process in both] == [1, 1]
    for rank in (0, 1):
        assert "nothing cannot be used: there is no such directory" in processes.output(tmp_path, rank)


@pytest.mark.slow
def test_processes_with_other_data_are_told_so(tmp_path):
    both = processes.start(2, tmp_path, **FAULTY, fault="fewer images", rank=1)
    assert [process.wait(processes.TIMEOUT) for process in both] == [1, 1]
    for rank in (0, 1):
        assert "process 1 has {'train_dataset': [7, 5, 6]" in processes.output(tmp_path, rank)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    results = processes.run(2, tmp_path, **{**FAULTY, "save_steps": 100}, fault="SIGTERM", step=3, rank=1)
    assert [result["interrupted"] for result in results] == [True, True]
    assert results[0]["steps"] == results[1]["steps"] == 4
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.slow
def test_a_full_disk_in_one_process(tmp_path):
    """Its part cannot be written, so there is no checkpoint; all go on."""
    options = {**FAULTY, "max_steps": 6, "save_total_limit": None}
    results = processes.run(2, tmp_path, **options, fault="full disk", step=2, rank=1)
    assert results[0]["steps"] == 6
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["checkpoint-2"]
    for rank in (0, 1):
        assert "checkpoint-4 could not be written and is left out" in processes.output(tmp_path, rank)


def test_sums_without_other_processes_are_the_tensors_themselves():
    from jscpt_peft.training.distributed import by_first_process, gather_objects, sum_over_processes

    tensors = [torch.arange(3), torch.ones(2, 2)]
    assert all(one is other for one, other in zip(sum_over_processes(tensors), tensors, strict=True))
    assert gather_objects("x") == ["x"]
    with pytest.raises(ValueError, match="as it is"):
        by_first_process(lambda: (_ for _ in ()).throw(ValueError("as it is")))
    assert by_first_process(lambda: Path("x")) == Path("x")
