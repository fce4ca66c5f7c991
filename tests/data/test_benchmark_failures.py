"""Benchmarks where the Hub does not answer, answers with an error, or has moved on."""

from __future__ import annotations

from dataclasses import replace

import benchmark_data
import numpy as np
import pytest
from benchmark_data import load, publish
from hub_server import Hub

from jscpt_peft.data.benchmarks import BENCHMARKS
from jscpt_peft.data.hub_tables import facts_of_selection

SPLITS = ("train", "validation", "dev", "test")
AGAIN = "The Hub or the network failed, which may pass: run the same command again."


@pytest.mark.slow
def test_no_network_and_nothing_cached(tmp_path):
    with Hub() as hub:
        (offline,), _ = load(hub, tmp_path, {"name": "dtd"}, HF_DATASETS_OFFLINE="1")
        assert hub.requests == []
    unreachable, _ = load(hub, tmp_path, {"name": "dtd"}, {"name": "ucf101"})  # the server is gone
    for found in (offline, *unreachable):
        assert "cannot be read from the Hub" in found["error"]
        assert "Without network give `data_root`" in found["error"]
    assert "`HF_DATASETS_OFFLINE` or `HF_HUB_OFFLINE` is set" in offline["error"]
    for found in unreachable:
        assert "ConnectError: [Errno 111] Connection refused" in found["error"] and AGAIN in found["error"]
    assert "flwrlabs" not in unreachable[1]["error"]  # the second place is not tried


@pytest.mark.slow
def test_rows_are_those_of_one_commit(tmp_path):
    """What is loaded, kept, remembered offline and named in a manifest is a commit, not a branch that moves."""
    dtd, cars = BENCHMARKS["dtd"].hub[0], BENCHMARKS["stanford_cars"].hub[0]
    ask = {"name": "dtd,stanford_cars", "train_fraction": 1.0}

    def commits(hub, count):
        sizes = dict.fromkeys(("train", "test", "pool"), count)
        return [publish(hub, name, per_class=sizes) for name in ("dtd", "stanford_cars")]

    with Hub() as hub:
        old = commits(hub, 4)
        (before,), _ = load(hub, tmp_path, ask)
        new = commits(hub, 6)
        hub.failing = {f"{new[0]}/README.md": 503}  # `datasets` then takes the older commit
        (broken,), _ = load(hub, tmp_path, ask)
        hub.failing = {}
        (after, again), _ = load(hub, tmp_path, ask, {"name": ask["name"], "manifest": before["manifest"]})
        offline, _ = load(hub, tmp_path, ask, {"name": "dtd", "revision": old[0]}, HF_DATASETS_OFFLINE="1")
    assert f"the cache holds {dtd.repository}@{old[0]}, not @{new[0]}" in broken["error"] and AGAIN in broken["error"]
    for found, oids in ((before, old), (after, new)):
        named = [f"{place.repository}@{oid}" for place, oid in zip((dtd, cars), oids, strict=True)]
        assert list(found["manifest"]["options"]["sources"].values()) == named
    for task in ("dtd", "stanford_cars"):
        images = [sum(len(each["tasks"][task]["keys"][split]) for split in SPLITS) for each in (before, after)]
        assert images[0] < images[1]
    assert again["tasks"] == before["tasks"]  # the manifest's own commit, although the branch has moved on
    assert offline[0]["tasks"] == after["tasks"]
    assert f"the cache holds tanganke/dtd@{new[0]}, not @{old[0]}" in offline[1]["error"]


@pytest.mark.slow
def test_what_may_pass_stops_the_run_and_nothing_else_is_tried(tmp_path):
    """Another place would be other images for the same command."""
    second = BENCHMARKS["caltech101"].hub[1]
    archive, frames = BENCHMARKS["ucf101"].hub
    cut, eurosat = "data/test-00001-of-00002.parquet", BENCHMARKS["eurosat"].hub[0]
    with Hub() as hub:
        files = benchmark_data.repository("eurosat", eurosat)
        files[cut] = files[cut][:-1000]
        hub.add(eurosat.repository, files, kind="datasets", revision=eurosat.revision)
        caltech, dtd, pets = (publish(hub, name) for name in ("caltech101", "dtd", "oxford_pets"))
        publish(hub, "caltech101", second)
        hub.add(archive.repository, {archive.file: b"not a zip file"}, revision=archive.revision)
        publish(hub, "ucf101", frames)
        hub.failing = {
            f"{caltech}/README.md": 503,  # `datasets`: "Couldn't find any data file"
            f"{dtd}/data/train-00001-of-00002.parquet": 429,
            f"{pets}/data/train-00000-of-00002.parquet": 502,
            archive.file: 503,
        }
        names = ("caltech101", "dtd", "oxford_pets", "ucf101", "eurosat")
        broken, _ = load(hub, tmp_path, *({"name": name} for name in names))
        hub.failing = {}
        (damaged, again), _ = load(hub, tmp_path, {"name": "ucf101"}, {"name": "dtd", "shots": 1})
        tried = {path for _, path in hub.requests}
    assert not any(place.repository in path for place in (second, frames) for path in tried)
    for found, status in zip(broken, ("503 ", "429 ", "502 ", "503 ", "ArrowInvalid: "), strict=True):
        assert status in found["error"] and AGAIN in found["error"], found["error"]
    assert f"delete *--timm--eurosat-rgb in {tmp_path / 'hub'} first" in broken[-1]["error"]
    assert list((tmp_path / "hub").glob("*--timm--eurosat-rgb"))
    assert "is damaged (File is not a zip file): delete it, and it is downloaded again" in damaged["error"]
    assert again.get("error") is None


@pytest.mark.slow
def test_what_is_not_there_is_looked_for_elsewhere_and_the_log_says_so(tmp_path):
    """A file that a repository does not have, and a repository that asks for a licence."""
    archive, frames = BENCHMARKS["ucf101"].hub
    first, second = BENCHMARKS["caltech101"].hub
    with Hub() as hub:
        hub.add(archive.repository, {"README.md": b""}, revision=archive.revision)
        hub.add(first.repository, {"README.md": b""}, kind="datasets", gated=True)
        publish(hub, "caltech101", second)
        publish(hub, "ucf101", frames)
        (found,), log = load(hub, tmp_path, {"name": "caltech101,ucf101", "shots": 1}, token=None)
    assert found.get("error") is None
    for name, place, other in (("caltech101", first, second), ("ucf101", archive, frames)):
        assert found["manifest"]["options"]["sources"][name] == f"{other.repository}@{other.revision}"
        assert f"{name} comes from {other.repository}" in log and place.repository in log
    # the second place of UCF101 holds frames, of which the middle ones are used: the others are (0, 255, 255)
    ucf = found["tasks"]["ucf101"]
    assert len(ucf["class_names"]) == 101 and "Clean And Jerk" in ucf["class_names"]
    names = sorted(benchmark_data.raw_names("ucf101"))
    for (label, number, _), own in zip(ucf["shown"]["train"], ucf["labels"]["train"][::10], strict=True):
        assert number < 10
        assert names[label].replace(" ", "") == ucf["class_names"][own].replace(" ", "")


@pytest.mark.slow
class TestStreams:
    ASK = {"name": "stanford_cars", "shots": 1}  # noqa: RUF012 (a constant)

    def test_what_was_read_is_not_read_again(self, tmp_path):
        with Hub() as hub:
            publish(hub, "stanford_cars", shards=3)
            hub.failing = {"train-00002-of-00003.parquet": 502}
            (broken,), _ = load(hub, tmp_path / "home", self.ASK)
            hub.failing, hub.downloads = {}, []
            again, _ = load(hub, tmp_path / "home", self.ASK)
            files = {path.rpartition("/")[2] for path in hub.downloads if path.endswith(".parquet")}
            hub.requests = []
            once_more, _ = load(hub, tmp_path / "home", self.ASK)
        assert "502" in broken["error"] and AGAIN in broken["error"]
        assert f"Complete files are kept in {tmp_path / 'home'}." in broken["error"]
        assert files == {"train-00002-of-00003.parquet", *(f"test-0000{file}-of-00003.parquet" for file in range(3))}
        assert again[0].get("error") is None and len(again[0]["tasks"]["stanford_cars"]["keys"]["train"]) == 196
        assert once_more == again
        assert not any("/resolve/" in path for _, path in hub.requests)

    def test_files_without_a_row_of_use(self, tmp_path):
        """Sorted by domain, as DomainNet's: all rows of some files are of domains that are dropped."""
        benchmark = BENCHMARKS["mini_domainnet"]
        (place,) = benchmark.hub
        with Hub() as hub:
            images = benchmark_data.images(benchmark, place, 2)
            tables = dict.fromkeys(place.splits, images.select(np.argsort(images["domain"], kind="stable")))
            files = benchmark_data.parquet_files(tables, shards=6)
            hub.add(place.repository, files, kind="datasets", revision=place.revision)
            (found,), _ = load(hub, tmp_path, {"name": "mini_domainnet", "shots": 1})
        assert found.get("error") is None
        for name, task in found["tasks"].items():
            domain = sorted(["clipart", "painting", "real", "sketch", "infograph", "quickdraw"]).index(name)
            assert {shown for _, _, shown in task["shown"]["test"]} == {domain}
            numbers = [int(key.partition("/")[2]) // (128 * 2) for key in task["keys"]["test"]]
            assert set(numbers) == {domain} and len(numbers) == 2 * 126


def test_what_decides_which_rows_are_kept():
    """A copy of 18.5 GB is made anew for another selection, not for another word about it."""
    benchmark = BENCHMARKS["mini_domainnet"]
    (place,) = benchmark.hub
    facts = facts_of_selection(benchmark, place)
    words = replace(benchmark, template="an image of {}", counts={"clipart": 1}, folder="elsewhere", hub=())
    assert facts_of_selection(words, replace(place, rows={"train": 1, "test": 1}, tolerance=0.5)) == facts
    for changes in (
        {"expected": (*benchmark.expected[1:], "zigzag")},
        {"domains": {**benchmark.domains, "quickdraw": "quickdraw"}},
        {"dropped": ("whale",)},
        {"renamed": {"zigzag": "zebra"}},
    ):
        assert facts_of_selection(replace(benchmark, **changes), place) != facts, changes
    for changes in ({"label": "class"}, {"domain": None}, {"middle_frame": True}, {"repository": "other/DomainNet"}):
        assert facts_of_selection(benchmark, replace(place, **changes)) != facts, changes
