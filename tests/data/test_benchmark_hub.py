"""Benchmarks from the Hub, by Hugging Face's own downloader over HTTP: small repositories, documented schemas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import benchmark_data
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_data import load, publish
from hub_server import Hub

from jscpt_peft.data.benchmarks import BENCHMARKS, FEW_SHOT_10

TEN = [each.name for each in FEW_SHOT_10]
SPLITS = ("train", "validation", "dev", "test")


def label_names(name):
    """Label of an image -> clean class name."""
    foreign = benchmark_data.FOREIGN_NAMES.get(name, [])
    raw = sorted(benchmark_data.raw_names(name) + foreign)
    clean = [benchmark_data.coop_name(name, each).replace("_", " ") for each in raw]
    return {label: None if raw[label] in foreign else each for label, each in enumerate(clean)}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Every first choice, at the pinned revisions only: a loader that asked for `main` would find nothing there."""
    with Hub() as hub:
        for name in BENCHMARKS:
            if name != "ucf101":
                publish(hub, name)
        folder = tmp_path_factory.mktemp("zip")
        benchmark_data.folder("ucf101", folder)
        archive = BENCHMARKS["ucf101"].hub[0]
        hub.add(
            archive.repository, {archive.file: benchmark_data.coop_zip("ucf101", folder)}, revision=archive.revision
        )
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def loaded(hub, home):
    """The three task sets, loaded by one program."""
    options = [
        {"name": "office_home"},
        {"name": "mini_domainnet", "train_fraction": 0.5},
        {"name": "few_shot_10", "shots": 1},
    ]
    found, log = load(hub, home, *options)
    assert [each.get("error") for each in found] == [None] * 3
    return {**dict(zip((each["name"] for each in options), found, strict=True)), "log": log}


@pytest.mark.slow
class TestFirstChoice:
    def check_images(self, task, name, domain=None):
        names = label_names(name)
        for split, images in task["shown"].items():
            assert images
            for (label, _, number_of_domain), own in zip(images, task["labels"][split][::10], strict=True):
                # the invented names of UCF101 are cut at capitals where CoOp's file has no underscore
                assert names[label].replace(" ", "") == task["class_names"][own].replace(" ", "")
                if domain is not None:
                    assert number_of_domain == domain

    def test_office_home(self, loaded):
        tasks = loaded["office_home"]["tasks"]
        assert list(tasks) == ["art", "clipart", "product", "real_world"]
        for number, task in enumerate(tasks.values()):
            assert len(task["class_names"]) == 65 and {"Postit Notes", "ToothBrush", "TV"} <= set(task["class_names"])
            assert task["template"] == "a photo of {}"
            sizes = {split: len(task["keys"][split]) for split in SPLITS}
            assert sizes["train"] == 65 and sizes["validation"] + sizes["dev"] == 65 and sizes["test"] == 8 * 65
            assert len(set().union(*task["keys"].values())) == 650
            self.check_images(task, "office_home", domain=number)
        revision = BENCHMARKS["office_home"].hub[0].revision
        origin = loaded["office_home"]["manifest"]["options"]["sources"]["office_home"]
        assert origin == f"flwrlabs/office-home@{revision}"
        assert "flwrlabs/office-home has 2600 rows in 'train', 15588 are published" in loaded["log"]

    def test_mini_domainnet_keeps_its_classes_and_domains_and_streams_the_rest(self, loaded, home):
        tasks = loaded["mini_domainnet"]["tasks"]
        assert list(tasks) == ["clipart", "painting", "real", "sketch"]
        domains = sorted(["clipart", "painting", "real", "sketch", "infograph", "quickdraw"])
        for name, task in tasks.items():
            assert len(task["class_names"]) == 126 and "The Eiffel Tower" in task["class_names"]
            assert len(task["keys"]["train"]) == 3 * 126 and len(task["keys"]["test"]) == 2 * 126
            self.check_images(task, "mini_domainnet", domain=domains.index(name))
            assert all(key.startswith("test/") for key in task["keys"]["test"])
            # keys number the repository's rows, not those that were kept
            assert max(int(key.partition("/")[2]) for key in task["keys"]["train"]) > 4 * 126 * 6
        assert not list((home / "hub").glob("datasets--wltjr1007*/blobs/*parquet*"))

    @pytest.mark.parametrize("name", TEN)
    def test_the_ten_data_sets(self, loaded, name):
        task = loaded["few_shot_10"]["tasks"][name]
        classes = BENCHMARKS[name].num_classes
        assert {*BENCHMARKS[name].expected} <= {*task["class_names"]}
        assert task["class_names"] == sorted(task["class_names"]) and len(task["class_names"]) == classes
        assert task["template"] == BENCHMARKS[name].template
        assert len(task["keys"]["train"]) == classes
        assert sorted(task["labels"]["train"]) == list(range(classes))
        assert len(task["keys"]["validation"]) + len(task["keys"]["dev"]) == classes
        self.check_images(task, name)
        keys = [key for split in SPLITS for key in task["keys"][split]]
        assert len(set(keys)) == len(keys)

    def test_official_tests_are_kept_and_pools_are_divided(self, loaded):
        tasks = loaded["few_shot_10"]["tasks"]
        for name in ("oxford_pets", "stanford_cars", "fgvc_aircraft", "sun397"):
            assert {key.partition("/")[0] for key in tasks[name]["keys"]["test"]} == {"test"}
            assert len(tasks[name]["keys"]["test"]) == 2 * BENCHMARKS[name].num_classes
        for name in ("oxford_flowers", "dtd", "eurosat"):
            assert len({key.partition("/")[0] for key in tasks[name]["keys"]["test"]}) > 1
        assert len(tasks["eurosat"]["keys"]["test"]) == 3 * 3 * 10  # 30 % of 3 x 10 images a class
        # the repository's own validation images, where it has some
        assert {key.partition("/")[0] for key in tasks["fgvc_aircraft"]["keys"]["dev"]} == {"validation"}

    def test_the_next_run_is_offline(self, loaded, hub, home):
        before = len(hub.requests)
        again, _ = load(
            hub,
            home,
            {"name": "office_home"},
            {"name": "mini_domainnet", "train_fraction": 0.5},
            {"name": "few_shot_10", "shots": 1},
            HF_DATASETS_OFFLINE="1",
        )
        assert [each.get("error") for each in again] == [None] * 3
        assert again == [loaded["office_home"], loaded["mini_domainnet"], loaded["few_shot_10"]]
        assert len(hub.requests) == before


@pytest.mark.slow
def test_what_differs_is_named(tmp_path):
    """Missing columns and splits, other types, other classes, no repository: one sentence each."""
    place = BENCHMARKS["dtd"].hub[0]
    benchmark = BENCHMARKS["dtd"]
    table = benchmark_data.images(benchmark, place, 2)

    def parquet(changed):
        return benchmark_data.parquet_files({"train": changed, "test": changed})

    def negative(batch):
        return batch.set_column(batch.column_names.index("label"), "label", pa.array([-1] * len(batch), pa.int64()))

    variants = {
        "renamed": parquet(table.rename_column("label", "class")),
        "numbers": parquet(table.cast_column("label", datasets.Value("int64"))),
        "fewer": parquet(table.filter(lambda row: row["label"] < 46)),
        "texts": parquet(table.remove_columns("image").add_column("image", ["x"] * len(table))),
        "unlabelled": parquet(table.map(lambda _: {"label": None})),
        "negative": parquet(table.with_format("arrow").map(negative, batched=True, features=table.features)),
        "one": benchmark_data.parquet_files({"train": table}),
    }
    messages = {
        "renamed": "tanganke/dtd has the columns ['class', 'image'], but ['label'] expected",
        "numbers": "column 'label' of tanganke/dtd is Value('int64'), expected class labels or strings",
        "fewer": "has 46 classes and no 'zigzagged' in task 'dtd', but dtd has 47",
        "unlabelled": "holds None in row 0: every image needs a label",
        "negative": "holds -1 in row 0: every image needs a label",
        "texts": "column 'image' of tanganke/dtd is Value('string'), expected images",
        "one": "tanganke/dtd has the splits ['train'], but ['test'] expected",
    }
    with Hub() as hub:
        for revision, files in variants.items():
            hub.add(place.repository, files, kind="datasets", revision=revision)
        options = [{"name": "dtd", "revision": revision} for revision in variants]
        publish(hub, "dtd", revision="other")
        found, _ = load(hub, tmp_path / "home", *options, {"name": "dtd", "revision": "other"}, {"name": "food101"})
    commit = hub.repositories["datasets", place.repository].refs["other"]
    assert found[-2]["manifest"]["options"]["sources"] == {"dtd": f"{place.repository}@{commit}"}
    for revision, each in zip(variants, found, strict=False):
        assert messages[revision] in each["error"], revision
        assert "Without network give `data_root`" in each["error"]
    assert "food101 cannot be read from the Hub (ethz/food101: " in found[-1]["error"]
    assert "Traceback" not in found[-1]["error"] and len(found[-1]["error"]) < 900


@pytest.mark.slow
def test_images_without_a_word_about_what_they_are(tmp_path):
    """Parquet of other writers than `datasets`: bytes, or bytes with a path."""
    place = BENCHMARKS["eurosat"].hub[0]
    table = benchmark_data.images(BENCHMARKS["eurosat"], place, 10).cast_column("image", datasets.Image(decode=False))
    rows = table.with_format("arrow")[:]  # an Arrow table, without what `datasets` knows of it
    image, others = rows["image"].combine_chunks(), rows.drop(["image"]).replace_schema_metadata(None)
    label = pa.array([table.features["label"].names[each] for each in rows["label"].to_pylist()])
    others = others.set_column(0, "label", label)
    variants = {"struct": image, "bytes": image.field("bytes")}
    with Hub() as hub:
        for revision, each in variants.items():
            path = tmp_path / "table.parquet"
            pq.write_table(others.append_column("image", each), path)
            names = [f"data/{split}-00000-of-00001.parquet" for split in place.splits]
            files = dict.fromkeys(names, path.read_bytes())
            hub.add(place.repository, files, kind="datasets", revision=revision)
        found, _ = load(hub, tmp_path / "home", *({"name": "eurosat", "revision": each} for each in variants))
    for each in found:
        assert each.get("error") is None
        task = each["tasks"]["eurosat"]
        names = label_names("eurosat")
        shown = [names[label] for label, _, _ in task["shown"]["train"]]
        assert shown == [task["class_names"][label] for label in task["labels"]["train"][::10]]


@pytest.mark.slow
def test_two_processes_load_at_once(tmp_path):
    """They wait for each other or share, and find the same."""
    cars = BENCHMARKS["stanford_cars"].hub[0]
    folder = tmp_path / "zip"
    benchmark_data.folder("ucf101", folder)
    archive = BENCHMARKS["ucf101"].hub[0]
    with Hub() as hub, ThreadPoolExecutor() as pool:
        publish(hub, "stanford_cars", cars)
        publish(hub, "dtd")
        files = {archive.file: benchmark_data.coop_zip("ucf101", folder)}
        hub.add(archive.repository, files, revision=archive.revision)
        ask = {"name": "dtd,stanford_cars,ucf101", "shots": 1}
        runs = [pool.submit(load, hub, tmp_path / "home", ask) for _ in range(2)]
        (first,), (second,) = (run.result()[0] for run in runs)
    assert first.get("error") is None
    assert first == second
