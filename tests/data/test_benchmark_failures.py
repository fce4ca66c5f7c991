"""Benchmarks where the Hub does not answer, answers with an error, or has moved on."""

from __future__ import annotations

from dataclasses import replace

import benchmark_data
import numpy as np
import pytest
from benchmark_data import load, publish
from hub_server import Hub

from jscpt_peft.data.benchmarks import BENCHMARKS
from jscpt_peft.data.hub_stream import facts_of_selection

SPLITS = ("train", "validation", "dev", "test")


@pytest.mark.slow
def test_no_network_and_nothing_cached(tmp_path):
    with Hub() as hub:
        offline, _ = load(hub, tmp_path, {"name": "dtd"}, {"name": "ucf101"}, HF_DATASETS_OFFLINE="1")
        assert hub.requests == []
    unreachable, _ = load(hub, tmp_path, {"name": "dtd"})  # the server is gone
    for found in (*offline, *unreachable):
        assert "cannot be read from the Hub" in found["error"]
        assert "Without network give `data_root`" in found["error"]
    assert "`HF_DATASETS_OFFLINE` or `HF_HUB_OFFLINE` is set" in offline[0]["error"]


@pytest.mark.slow
def test_rows_are_those_of_one_commit(tmp_path):
    """What is loaded, kept, remembered offline and named in a manifest is a commit, not a branch that moves."""
    dtd, cars = BENCHMARKS["dtd"].hub[0], BENCHMARKS["stanford_cars"].hub[0]
    small, large = ({"train": each, "test": each, "pool": each} for each in (4, 6))
    ask = {"name": "dtd,stanford_cars", "train_fraction": 1.0}
    with Hub() as hub:
        old = [
            hub.add(dtd.repository, benchmark_data.repository("dtd", dtd, small), kind="datasets"),
            hub.add(cars.repository, benchmark_data.repository("stanford_cars", cars, small), kind="datasets"),
        ]
        (before,), _ = load(hub, tmp_path, ask)
        new = [
            hub.add(dtd.repository, benchmark_data.repository("dtd", dtd, large), kind="datasets"),
            hub.add(cars.repository, benchmark_data.repository("stanford_cars", cars, large), kind="datasets"),
        ]
        (after, again), _ = load(hub, tmp_path, ask, {"name": ask["name"], "manifest": before["manifest"]})
        named = [f"{dtd.repository}@{old[0]}", f"{cars.repository}@{old[1]}"]
        assert list(before["manifest"]["options"]["sources"].values()) == named
        assert [each.split("@")[1] for each in after["manifest"]["options"]["sources"].values()] == new
        for task, classes in (("dtd", 47), ("stanford_cars", 196)):
            images = [sum(len(each["tasks"][task]["keys"][split]) for split in SPLITS) for each in (before, after)]
            assert images[0] < images[1] and len(after["tasks"][task]["keys"]["test"]) > classes
        assert again["tasks"] == before["tasks"]  # the manifest's own commit, although the branch has moved on
        offline, _ = load(hub, tmp_path, ask, {"name": "dtd", "revision": old[0]}, HF_DATASETS_OFFLINE="1")
    assert offline[0]["tasks"] == after["tasks"]
    # Without network `datasets` would take the newest copy for any commit.
    assert f"the cache holds tanganke/dtd@{new[0]}, not @{old[0]}" in offline[1]["error"]


@pytest.mark.slow
def test_a_damaged_archive_is_named_and_nothing_else_is_tried(tmp_path):
    archive = BENCHMARKS["ucf101"].hub[0]
    with Hub() as hub:
        hub.add(archive.repository, {archive.file: b"not a zip file"}, revision=archive.revision)
        publish(hub, "ucf101", BENCHMARKS["ucf101"].hub[1])
        (found,), _ = load(hub, tmp_path, {"name": "ucf101"})
        assert not any("flwrlabs" in path for _, path in hub.requests)
    assert "is damaged (File is not a zip file): delete it, and it is downloaded again" in found["error"]


# ---- failures that may pass -----------------------------------------------------------------------------------------

AGAIN = "The Hub or the network failed, which may pass: run the same command again."


@pytest.mark.slow
class TestTheHubIsOutOfOrder:
    """Another place would be other images for the same command: nothing else is tried."""

    def test_503_for_an_archive(self, tmp_path):
        archive, frames = BENCHMARKS["ucf101"].hub
        benchmark_data.folder("ucf101", tmp_path / "data")
        with Hub() as hub:
            files = {archive.file: benchmark_data.coop_zip("ucf101", tmp_path / "data")}
            hub.add(archive.repository, files, revision=archive.revision)
            publish(hub, "ucf101", frames)
            hub.failing = {archive.file: 503}
            (broken,), _ = load(hub, tmp_path, {"name": "ucf101", "shots": 1})
            assert not any(frames.repository in path for _, path in hub.requests)
            hub.failing = {}
            (again,), _ = load(hub, tmp_path, {"name": "ucf101", "shots": 1})
        assert "503" in broken["error"] and archive.file in broken["error"] and AGAIN in broken["error"]
        assert again["manifest"]["options"]["sources"]["ucf101"] == f"{archive.repository}@{archive.revision}"

    @pytest.mark.parametrize(
        ("file", "status"),
        [
            ("caltech101/resolve/COMMIT/README.md", 503),  # `datasets`: "Couldn't find any data file"
            ("train-00001-of-00002.parquet", 429),
            ("train-00000-of-00002.parquet", 502),
        ],
    )
    def test_another_status_for_a_table(self, tmp_path, file, status):
        first, second = BENCHMARKS["caltech101"].hub
        with Hub() as hub:
            commit = publish(hub, "caltech101", first)
            publish(hub, "caltech101", second)
            hub.failing = {file.replace("COMMIT", commit): status}
            (broken,), _ = load(hub, tmp_path, {"name": "caltech101", "shots": 1})
            assert not any(second.repository in path for _, path in hub.requests)
        assert f"{status} " in broken["error"] and AGAIN in broken["error"]

    def test_503_while_an_older_commit_is_in_the_cache(self, tmp_path):
        """`datasets` then takes the older one."""
        first, second = BENCHMARKS["caltech101"].hub
        with Hub() as hub:
            old = publish(hub, "caltech101", first)
            load(hub, tmp_path, {"name": "caltech101", "shots": 1})
            new = publish(hub, "caltech101", first, per_class={"pool": 12})
            publish(hub, "caltech101", second)
            hub.failing = {f"{new}/README.md": 503}
            (broken,), _ = load(hub, tmp_path, {"name": "caltech101", "shots": 1})
            assert not any(second.repository in path for _, path in hub.requests)
        assert f"the cache holds {first.repository}@{old}, not @{new}" in broken["error"]
        assert AGAIN in broken["error"]

    def test_no_network(self, tmp_path):
        with Hub() as hub:
            publish(hub, "ucf101", BENCHMARKS["ucf101"].hub[1])
        (broken,), _ = load(hub, tmp_path, {"name": "ucf101"})  # the server is gone
        assert "ConnectError: [Errno 111] Connection refused" in broken["error"] and AGAIN in broken["error"]
        assert "flwrlabs" not in broken["error"]

    def test_a_file_that_is_cut_off(self, tmp_path):
        first, second = BENCHMARKS["caltech101"].hub
        files = benchmark_data.repository("caltech101", first)
        path = "data/train-00001-of-00002.parquet"
        with Hub() as hub:
            hub.add(first.repository, {**files, path: files[path][:-1000]}, kind="datasets")
            publish(hub, "caltech101", second)
            (broken,), _ = load(hub, tmp_path, {"name": "caltech101", "shots": 1})
            assert not any(second.repository in path for _, path in hub.requests)
        assert "ArrowInvalid: " in broken["error"] and AGAIN in broken["error"]
        copies = list((tmp_path / "hub").glob("*--flwrlabs--caltech101"))
        assert copies and f"delete *--flwrlabs--caltech101 in {tmp_path / 'hub'} first" in broken["error"]

    def test_what_is_not_there_is_still_looked_for_elsewhere(self, tmp_path):
        """A revision or file that a repository does not have, and one that asks for a licence."""
        archive, frames = BENCHMARKS["ucf101"].hub
        with Hub() as hub:
            publish(hub, "ucf101", frames, per_class={"train": 3, "test": 2})
            for changes in ({"revision": "main"}, {"revision": archive.revision}, {"gated": True}):
                hub.repositories.pop(("models", archive.repository), None)
                hub.add(archive.repository, {"README.md": b""}, **changes)
                (found,), log = load(hub, tmp_path / "home", {"name": "ucf101", "shots": 1}, token=None)
                assert found.get("error") is None
                assert f"ucf101 comes from {frames.repository}" in log


# ---- streams --------------------------------------------------------------------------------------------------------


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
        """As DomainNet's of one domain: here a file's rows are all of classes or domains that are dropped."""
        place = BENCHMARKS["mini_domainnet"].hub[0]
        orders = ("mixed", "by domain")
        with Hub() as hub:
            for order in orders:
                tables = {
                    split: benchmark_data.images(BENCHMARKS["mini_domainnet"], place, 4) for split in place.splits
                }
                if order == "by domain":
                    tables = {
                        split: table.select(np.argsort(table["domain"], kind="stable"))
                        for split, table in tables.items()
                    }
                files = benchmark_data.parquet_files(tables, shards=6)
                hub.add(place.repository, files, kind="datasets", revision=order)
            asked = [{"name": "mini_domainnet", "shots": 1, "revision": order} for order in orders]
            found, _ = load(hub, tmp_path, *asked)
        for order, each in zip(orders, found, strict=True):
            assert each.get("error") is None
            assert [len(task["keys"]["test"]) for task in each["tasks"].values()] == [4 * 126] * 4
            for name, task in each["tasks"].items():
                domain = sorted(["clipart", "painting", "real", "sketch", "infograph", "quickdraw"]).index(name)
                assert {shown for _, _, shown in task["shown"]["test"]} == {domain}
                if order == "by domain":
                    numbers = [int(key.partition("/")[2]) // (128 * 4) for key in task["keys"]["test"]]
                    assert set(numbers) == {domain}


def test_what_decides_which_rows_are_kept():
    """A copy of 18.5 GB is made anew for another selection, not for another word about it."""
    benchmark = BENCHMARKS["mini_domainnet"]
    place = benchmark.hub[0]
    facts = facts_of_selection(benchmark, place)
    for changes in (
        {"template": "a picture of {}"},
        {"counts": {"clipart": 1}},
        {"default_shots": 3},
        {"folder": "elsewhere"},
        {"hub": ()},
    ):
        assert facts_of_selection(replace(benchmark, **changes), place) == facts, changes
    for changes in ({"rows": {"train": 1, "test": 1}}, {"tolerance": 0.5}):
        assert facts_of_selection(benchmark, replace(place, **changes)) == facts, changes
    classes, domains = benchmark.expected, benchmark.domains
    for changes in (
        {"expected": (*classes[1:], "zigzag")},
        {"domains": {**domains, "quickdraw": "quickdraw"}},
        {"dropped": ("whale",)},
        {"renamed": {"zigzag": classes[0]}},
    ):
        assert facts_of_selection(replace(benchmark, **changes), place) != facts, changes
    for changes in ({"label": "class"}, {"domain": None}, {"middle_frame": True}, {"repository": "other/DomainNet"}):
        assert facts_of_selection(benchmark, replace(place, **changes)) != facts, changes
