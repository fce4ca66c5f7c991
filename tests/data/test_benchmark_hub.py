"""Benchmarks from the Hub, by Hugging Face's own downloader over HTTP: small repositories, documented schemas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import benchmark_data
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_data import load, publish, publish_archive
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
            if name != "ucf101":  # of MiniDomainNet's six domains and 128 classes fewer images will do
                publish(hub, name, per_class={"train": 4, "test": 1} if name == "mini_domainnet" else None)
        publish_archive(hub, "ucf101", tmp_path_factory.mktemp("zip"))
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


ASK = [
    {"name": "office_home"},
    {"name": "mini_domainnet", "train_fraction": 0.5},
    {"name": "few_shot_10", "shots": 1},
]


@pytest.fixture(scope="module")
def loaded(hub, home):
    """The three task sets, loaded by one program."""
    found, log = load(hub, home, *ASK)
    assert [each.get("error") for each in found] == [None] * 3
    return {**dict(zip((each["name"] for each in ASK), found, strict=True)), "log": log}


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
            assert len(task["keys"]["train"]) == 2 * 126 and len(task["keys"]["test"]) == 126
            self.check_images(task, "mini_domainnet", domain=domains.index(name))
            assert all(key.startswith("test/") for key in task["keys"]["test"])
            # keys number the repository's rows, not those that were kept
            assert max(int(key.partition("/")[2]) for key in task["keys"]["train"]) > 4 * 126 * 4
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
        again, _ = load(hub, home, *ASK, HF_DATASETS_OFFLINE="1")
        assert again == [loaded[each["name"]] for each in ASK]
        assert len(hub.requests) == before


@pytest.mark.slow
def test_what_differs_is_named(tmp_path):
    """Missing columns and splits, other types, other classes, no repository: one sentence each."""
    place = BENCHMARKS["dtd"].hub[0]
    table = benchmark_data.images(BENCHMARKS["dtd"], place, 2)

    def parquet(changed):
        return benchmark_data.parquet_files({"train": changed, "test": changed})

    def negative(batch):
        return batch.set_column(batch.column_names.index("label"), "label", pa.array([-1] * len(batch), pa.int64()))

    wrong = {
        "tanganke/dtd has the columns ['class', 'image'], but ['label'] expected": parquet(
            table.rename_column("label", "class")
        ),
        "column 'label' of tanganke/dtd is Value('int64'), expected class labels or strings": parquet(
            table.cast_column("label", datasets.Value("int64"))
        ),
        "has 46 classes and no 'zigzagged' in task 'dtd', but dtd has 47": parquet(table.select(range(2 * 46))),
        "column 'image' of tanganke/dtd is Value('string'), expected images": parquet(
            table.remove_columns("image").add_column("image", ["x"] * len(table))
        ),
        "holds None in row 0: every image needs a label": parquet(table.map(lambda _: {"label": None})),
        "holds -1 in row 0: every image needs a label": parquet(
            table.with_format("arrow").map(negative, batched=True, features=table.features)
        ),
        "tanganke/dtd has the splits ['train'], but ['test'] expected": benchmark_data.parquet_files({"train": table}),
    }
    with Hub() as hub:
        commits = [hub.add(place.repository, files, "datasets", f"v{n}") for n, files in enumerate(wrong.values())]
        commits.append(publish(hub, "dtd", revision="other"))
        options = [{"name": "dtd", "revision": revision} for revision in (*commits[:-1], "other")]
        found, _ = load(hub, tmp_path, *options, {"name": "food101"})
    assert found[-2]["manifest"]["options"]["sources"] == {"dtd": f"{place.repository}@{commits[-1]}"}
    for message, each in zip(wrong, found, strict=False):
        assert message in each["error"] and "Without network give `data_root`" in each["error"]
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
    with Hub() as hub, ThreadPoolExecutor() as pool:
        publish(hub, "stanford_cars", per_class={"train": 3, "test": 1})
        publish(hub, "dtd")
        publish_archive(hub, "ucf101", tmp_path / "zip")
        ask = {"name": "dtd,stanford_cars,ucf101", "shots": 1}
        runs = [pool.submit(load, hub, tmp_path / "home", ask) for _ in range(2)]
        (first,), (second,) = (run.result()[0] for run in runs)
    assert first.get("error") is None
    assert first == second
