"""Ten data sets of 100,000 images train in less than 3 GB of memory, and images themselves are never held in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest
from benchmark_data import load, publish
from hub_server import Hub

from jscpt_peft.data.benchmarks import FEW_SHOT_10, HubTable

PROGRAM = Path(__file__).parents[1] / "memory_program.py"
GIGABYTE = 1e9

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def real(command, **options):
    """A process that shares no memory with another one, as one that is forked does."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def measure(hub, folder, start, name, revisions):
    """What `memory_program` finds of a task set at some revisions, one after the other."""
    options = [{"name": name, "revision": revision, "train_fraction": 1.0} for revision in revisions]
    command = [sys.executable, str(PROGRAM), json.dumps(options), str(folder / "run")]
    done = start(command, env=hub.environment(folder), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"all"')]


@pytest.mark.slow
def test_ten_data_sets_of_100_000_images(tmp_path):
    """Extrapolated from what images add between 2,000 and 8,000 of each."""
    with Hub() as hub:
        for benchmark in FEW_SHOT_10:
            place = next(each for each in benchmark.hub if isinstance(each, HubTable))
            count = -(-2_000 // (benchmark.num_classes * len(place.splits)))
            counts = dict.fromkeys(("train", "validation", "test", "pool"), count)
            for revision, times in {"few": 1, "many": 4}.items():
                publish(hub, benchmark.name, place, revision, per_class=counts, times=times)
        few, many = measure(hub, tmp_path, real, "few_shot_10", ["few", "many"])
    print(few, many)
    assert few["steps"] == many["steps"] == 2
    images = [found["train"] + found["test"] for found in (few, many)]  # the rest is validation that is not of use
    assert images[1] > 50_000
    an_image = (many["all"] - few["all"]) / (images[1] - images[0])
    assert few["all"] + 1_000_000 * an_image < 3 * GIGABYTE


@pytest.mark.slow
def test_images_stay_on_disk(tmp_path):
    """Images of 260 MB take hardly more memory than as many of 1 MB, once they have come from the Hub.

    Downloading needs some row groups of a parquet file at a time, whatever is done with them.
    """
    fillings = {"small": b"", "large": b"\0" + bytes(range(256)) * 200}  # read by no decoder
    with Hub() as hub:
        for revision, filling in fillings.items():
            publish(hub, "eurosat", revision=revision, per_class={"pool": 42}, filling=filling, times=4)
        load(hub, tmp_path, *({"name": "eurosat", "revision": revision} for revision in fillings))
        small, large = measure(hub, tmp_path, fork_server.run, "eurosat", fillings)
    print(small, large)
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*.arrow"))
    assert on_disk > 0.2 * GIGABYTE
    assert large["anonymous"] - small["anonymous"] < 0.1 * on_disk
