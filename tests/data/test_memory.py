"""Ten data sets of 100,000 images train in less than 3 GB of memory, and images themselves are never held in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import benchmark_data
import fork_server
import pytest
from hub_server import Hub

from jscpt_peft.data.benchmarks import BENCHMARKS, FEW_SHOT_10, HubTable

PROGRAM = Path(__file__).parents[1] / "memory_program.py"
GIGABYTE = 1e9

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def real(command, **options):
    """A process that shares no memory with another one, as one that is forked does."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def measure(hub, folder, start, **options):
    """What `memory_program` finds."""
    command = [sys.executable, str(PROGRAM), json.dumps(options), str(folder / "run")]
    done = start(command, env=hub.environment(folder), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def of_ten_data_sets(folder, images):
    """What training on about as many images of each takes."""
    with Hub() as hub:
        for benchmark in FEW_SHOT_10:
            place = next(each for each in benchmark.hub if isinstance(each, HubTable))
            count = -(-images // (benchmark.num_classes * len(place.splits)))
            counts = dict.fromkeys(("train", "validation", "test", "pool"), count)
            files = benchmark_data.repository(benchmark.name, place, counts)
            hub.add(place.repository, files, kind="datasets", revision=place.revision or "main")
        return measure(hub, folder, real, name="few_shot_10", train_fraction=1.0)


@pytest.mark.slow
def test_ten_data_sets_of_100_000_images(tmp_path):
    """Extrapolated from what images add between 2,000 and 8,000 of each."""
    few, many = (of_ten_data_sets(tmp_path / str(images), images) for images in (2_000, 8_000))
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
    place = BENCHMARKS["eurosat"].hub[0]
    counts = {"pool": 5_000 // 10 // 3}
    found = {}
    for name, filling in (("small", b""), ("large", b"\0" + bytes(range(256)) * 200)):  # read by no decoder
        with Hub() as hub:
            files = benchmark_data.repository("eurosat", place, counts, filling=filling)
            hub.add(place.repository, files, kind="datasets", revision=place.revision)
            (tmp_path / name).mkdir()
            for _ in ("download", "train"):  # processes that share as much of the fork server's memory as each other
                found[name] = measure(hub, tmp_path / name, fork_server.run, name="eurosat", train_fraction=1.0)
    print(found)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.arrow"))
    assert on_disk > 0.2 * GIGABYTE
    assert found["large"]["anonymous"] - found["small"]["anonymous"] < 0.1 * on_disk
