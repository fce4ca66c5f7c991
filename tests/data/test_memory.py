"""Ten data sets of 100,000 images train in less than 3 GB of memory, and images themselves are never held in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import benchmark_data
import pytest
from hub_server import Hub

from jscpt_peft.data.benchmarks import BENCHMARKS, FEW_SHOT_10, HubTable

PROGRAM = Path(__file__).parents[1] / "memory_program.py"
GIGABYTE = 1e9

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def measure(hub, folder, **options):
    command = [sys.executable, str(PROGRAM), json.dumps(options), str(folder / "run")]
    variables = hub.environment(folder)  # a real process: one that is forked shares memory
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_data_sets_of_100_000_images(tmp_path):
    with Hub() as hub:
        for benchmark in FEW_SHOT_10:
            place = next(each for each in benchmark.hub if isinstance(each, HubTable))
            count = -(-100_000 // (benchmark.num_classes * len(place.splits)))
            counts = dict.fromkeys(("train", "validation", "test", "pool"), count)
            files = benchmark_data.repository(benchmark.name, place, counts)
            hub.add(place.repository, files, kind="datasets", revision=place.revision or "main")
        found = measure(hub, tmp_path, name="few_shot_10", train_fraction=1.0)
    print(found)
    assert found["steps"] == 4
    assert found["train"] + found["test"] > 700_000  # the rest is validation that is not of use
    assert found["all"] < 3 * GIGABYTE


@pytest.mark.slow
def test_images_stay_on_disk(tmp_path):
    """Pictures of 600 MB take hardly more memory than as many of 1 MB, once they have come from the Hub.

    Downloading needs some row groups of a parquet file at a time, whatever is done with them.
    """
    place = BENCHMARKS["eurosat"].hub[0]
    counts = {"pool": 10_000 // 10 // 3}
    found = {}
    for name, filling in (("small", b""), ("large", b"\0" + bytes(range(256)) * 235)):  # read by no decoder
        with Hub() as hub:
            files = benchmark_data.repository("eurosat", place, counts, filling=filling)
            hub.add(place.repository, files, kind="datasets", revision=place.revision)
            (tmp_path / name).mkdir()
            for _ in ("downloads them", "finds them"):
                found[name] = measure(hub, tmp_path / name, name="eurosat", train_fraction=1.0)
    print(found)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.arrow"))
    assert on_disk > 0.55 * GIGABYTE
    assert found["large"]["anonymous"] - found["small"]["anonymous"] < 0.1 * on_disk
