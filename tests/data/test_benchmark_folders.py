"""Benchmarks from a folder, in the layouts of CoOp, Dassl and LibMTL, by `load_task_set` as a user calls it."""

from __future__ import annotations

import json
import os
import shutil

import benchmark_data
import pytest

from jscpt_peft.data import ImageTaskDataset, load_task_set, read_column, read_manifest, write_manifest
from jscpt_peft.data.benchmarks import BENCHMARKS, FEW_SHOT_10

COOP = [each.name for each in FEW_SHOT_10]
SPLITS = ("train", "validation", "dev", "test")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """All twelve data sets in one folder."""
    root = tmp_path_factory.mktemp("data")
    for name in BENCHMARKS:
        benchmark_data.folder(name, root)
    return root


def copy_of(name, data_root, tmp_path):
    """Its files are links: a test may remove them, but not write to them."""
    folder = BENCHMARKS[name].folder
    shutil.copytree(data_root / folder, tmp_path / folder, copy_function=os.link)
    return tmp_path


def rewrite(path, content):
    path.unlink()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def check_images(task_set, label_of_name):
    """Every image of every split shows the class that its label says, none is in two splits."""
    for task in task_set:
        keys = []
        for split in SPLITS:
            table = task.split(split)
            keys += read_column(table, "key")
            for row in table:
                label = benchmark_data.shown(row["image"])[0]
                assert abs(label - label_of_name[task.class_names[row["label"]]]) <= 2, row["key"]  # JPEG
        assert len(set(keys)) == len(keys) > 0


def clean(name, raw):
    return benchmark_data.coop_name(name, raw).replace("_", " ")


class TestCoOp:
    # those whose names or lists are read in a way of their own, and one of the others
    @pytest.mark.parametrize("name", ["caltech101", "stanford_cars", "fgvc_aircraft", "ucf101", "dtd"])
    def test_the_files_splits_are_the_splits(self, data_root, name, caplog):
        task_set = load_task_set(name, data_root=data_root, train_fraction=1.0)
        task = task_set.tasks[0]
        raw = sorted(benchmark_data.raw_names(name))
        labels = {clean(name, each): label for label, each in enumerate(raw)}
        assert sorted(task.class_names) == list(task.class_names) == sorted(labels)
        assert task.template == BENCHMARKS[name].template
        classes = len(raw)
        assert (len(task.train), len(task.test)) == (6 * classes, 2 * classes)
        assert len(task.validation) + len(task.dev) == 2 * classes
        assert abs(len(task.validation) - len(task.dev)) <= classes // 5 + 1
        check_images(task_set, labels)
        assert "accuracies on it cannot be compared with published ones" in caplog.text

    def test_shots_are_nested_and_seeds_keep_the_test(self, data_root):
        one, five, other = (
            load_task_set("dtd", data_root=data_root, shots=shots, seed=seed).tasks[0]
            for shots, seed in ((1, 1), (5, 1), (1, 2))
        )
        keys = [set(read_column(task.train, "key")) for task in (one, five, other)]
        assert [len(each) for each in keys] == [47, 5 * 47, 47] and keys[0] < keys[1] and keys[0] != keys[2]
        assert len(one.validation) + len(one.dev) == 47
        assert len(five.validation) + len(five.dev) == 2 * 47  # the file has no more
        assert read_column(one.test, "key") == read_column(five.test, "key") == read_column(other.test, "key")


class TestDomains:
    def test_office_home_leaves_the_rest_for_testing(self, data_root):
        task_set = load_task_set("office_home", data_root=data_root)
        assert list(task_set.class_names) == ["art", "clipart", "product", "real_world"]
        for task in task_set:
            assert len(task.class_names) == 65 and "Postit Notes" in task.class_names
            assert len(task.train) == 65  # 10 % of ten images a class
            assert len(task.validation) + len(task.dev) == 65
            assert len(task.test) == 8 * 65
        check_images(
            task_set, {c.replace("_", " "): i for i, c in enumerate(sorted(benchmark_data.raw_names("office_home")))}
        )
        train = {task.name: {key.split("/", 2)[2] for key in read_column(task.train, "key")} for task in task_set}
        assert train["art"] != train["clipart"]  # each task draws for itself

    def test_spellings_of_the_domains_folders(self, data_root, tmp_path):
        root = copy_of("office_home", data_root, tmp_path)
        (root / "office_home" / "Art").rename(root / "office_home" / "ART")
        (root / "office_home" / "Real World").rename(root / "office_home" / "real_world")
        there = load_task_set("office_home", data_root=root, shots=2)
        assert there.class_names == load_task_set("office_home", data_root=data_root, shots=2).class_names
        assert [len(task.train) for task in there] == [130] * 4

    def test_libmtl_lists(self, data_root, tmp_path):
        root = copy_of("office_home", data_root, tmp_path)
        benchmark_data.libmtl_lists(root)
        task = load_task_set("office_home", data_root=root, train_fraction=0.5).tasks[3]
        assert (task.name, len(task.train), len(task.test)) == ("real_world", 3 * 65, 2 * 65)
        numbers = {
            split: {int(key[-9:-4]) for key in read_column(task.split(split), "key")} for split in ("train", "test")
        }
        assert numbers["train"] <= set(range(6)) and numbers["test"] == {8, 9}
        assert {int(key[-9:-4]) for s in ("validation", "dev") for key in read_column(task.split(s), "key")} == {6, 7}


class TestMixtures:
    def test_several_data_sets(self, data_root):
        task_set = load_task_set("few_shot_10", data_root=data_root, shots=1)
        assert list(task_set.class_names) == COOP
        assert [set(read_column(task.train, "task_id")) for task in task_set] == [{number} for number in range(10)]
        dataset = ImageTaskDataset(task_set.split("train"), lambda image, _: image.size)
        assert dataset[len(dataset) - 1]["pixel_values"] == (8, 8)

    def test_domains_of_the_same_name_are_told_apart_and_each_has_its_own_protocol(self, data_root):
        mixed = load_task_set("office_home, mini_domainnet,eurosat", data_root=data_root)
        assert list(mixed.class_names) == [
            *("art", "office_home_clipart", "product", "real_world"),
            *("mini_domainnet_clipart", "painting", "real", "sketch", "eurosat"),
        ]
        sizes = [(len(task.train), len(task.validation) + len(task.dev), len(task.test)) for task in mixed]
        # a pool, Dassl's lists for training (8 images a class) and testing (2), and CoOp's for all three
        assert sizes == [(65, 65, 8 * 65)] * 4 + [(126, 126, 2 * 126)] * 4 + [(5 * 10, 2 * 10, 2 * 10)]
        assert "The Eiffel Tower" in mixed.tasks[7].class_names
        # the same images are drawn whatever else is loaded
        alone = load_task_set("office_home", data_root=data_root).tasks[1]
        for split in SPLITS:
            assert read_column(mixed.tasks[1].split(split), "key") == read_column(alone.split(split), "key")


def rewritten(text, **changes):
    """A split JSON with other splits."""
    return json.dumps({**json.loads(text), **{split: change(json.loads(text)) for split, change in changes.items()}})


COOP_SPLIT = "dtd/split_zhou_DescribableTextures.json"
DASSL_LIST = "domainnet/splits_mini/real_train.txt"


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("food101", "has no folder 'food-101': food101 belongs there as images/ and split_zhou_Food101.json"),
            ("office_home", "has no folder 'office_home': .* the domains being Art, Clipart"),
        ],
    )
    def test_no_such_folder_says_what_belongs_there(self, name, message, tmp_path):
        with pytest.raises(FileNotFoundError, match=message):
            load_task_set(name, data_root=tmp_path)

    @pytest.mark.parametrize(
        ("path", "change", "message"),
        [
            (COOP_SPLIT, lambda _: '{"train": []}', "is no split file of CoOp .*'val'.*: it must hold `train`, `val`"),
            (COOP_SPLIT, lambda _: "{", "is no split file of CoOp"),
            (COOP_SPLIT, lambda _: "[" * 100_000, "is no split file of CoOp"),
            (COOP_SPLIT, None, "DescribableTextures.json is missing: dtd belongs there as"),
            (
                *(COOP_SPLIT, lambda text: rewritten(text, test=lambda old: old["train"])),
                r"name 'dtd/images/.*' twice \(task 'dtd': train and test\)",
            ),
            (
                *(COOP_SPLIT, lambda text: rewritten(text, train=lambda old: old["train"] * 2)),
                r"twice \(task 'dtd': train and train\)",
            ),
            (DASSL_LIST, None, "has no list real_train.txt: mini_domainnet belongs there as"),
            ("domainnet/clipart", None, "has no folder 'clipart'"),
            (DASSL_LIST, lambda text: text.replace(" 0\n", " 5\n", 1), "gives label 5 to .* and to "),
            (DASSL_LIST, lambda text: text + "nonsense\n", "has the line 'nonsense': expected `<domain>/<class>/<im"),
            (
                *("fgvc_aircraft/images_variant_val.txt", lambda text: text + "1 Zeppelin\n"),
                "has the line '1 Zeppelin': its variant is not in variants.txt",
            ),
            ("office_home/Product/TV", None, "has 64 classes and no 'TV' in task 'product', but office_home has 65"),
            (
                *("eurosat/2750/River/image_0001.png", None),
                "1 of 100 images of eurosat are missing .* 'eurosat/2750/River/image_0001.png'",
            ),
        ],
    )
    def test_what_is_missing_or_damaged_is_named(self, data_root, tmp_path, path, change, message):
        name = next(name for name, each in BENCHMARKS.items() if each.folder == path.partition("/")[0])
        target = copy_of(name, data_root, tmp_path) / path
        if change is not None:
            rewrite(target, change(target.read_text()))
        elif target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_task_set(name, data_root=tmp_path)

    def test_lists_are_for_all_domains_or_for_none(self, data_root, tmp_path):
        benchmark_data.libmtl_lists(copy_of("office_home", data_root, tmp_path))
        for path in (tmp_path / "office_home" / "data_txt").rglob("Product_*.txt"):
            path.unlink()
        with pytest.raises(FileNotFoundError, match=r"has no list Product_train.txt.*for all domains or for none"):
            load_task_set("office_home", data_root=tmp_path)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("food101,oxford_pet", {}, "'oxford_pet' is none of .*Did you mean 'oxford_pets'"),
            ("food101,shapes", {}, "'shapes' is none of"),
            ("dtd,dtd", {}, "holds 'dtd' more than once"),
            ("few_shot_10,dtd", {}, "holds 'dtd' more than once"),
            ("dtd", {"shots": 1, "train_fraction": 0.1}, "give at most one of them"),
            ("dtd", {"shots": 0}, "`shots` must be at least 1, got 0"),
            ("dtd", {"train_fraction": 2.0}, "`train_fraction` must be at most 1, got 2"),
            ("office_home", {"train_fraction": 1.0}, "`train_fraction` 1.0 leaves no validation images of task 'art'"),
            ("dtd", {"revision": "main"}, "`revision` is 'main', which is for the Hub"),
            ("dtd", {"spurious_strength": 0.5}, "`spurious_strength` is 0.5, which the task set 'dtd' does not take"),
        ],
    )
    def test_arguments(self, data_root, name, options, message):
        with pytest.raises(ValueError, match=message):
            load_task_set(name, data_root=data_root, **options)

    def test_unreadable_images_are_skipped_where_that_is_asked_for(self, data_root, tmp_path, caplog):
        river = sorted((copy_of("eurosat", data_root, tmp_path) / "eurosat" / "2750" / "River").iterdir())
        ask = {"name": "eurosat", "data_root": tmp_path, "train_fraction": 1.0, "skip_bad_images": True}
        rewrite(river[1], b"no image")
        assert len(load_task_set(**ask).tasks[0].train) == 59
        assert "Skipped 1 unreadable images" in caplog.text and "River/image_0001.png" in caplog.text
        for path in river:
            rewrite(path, b"no image")
        with pytest.raises(ValueError, match="has 9 classes and no 'River' in task 'eurosat', but eurosat has 10"):
            load_task_set(**ask)


class TestManifest:
    def test_it_names_every_image_and_no_place_on_the_machine(self, data_root, tmp_path):
        """Manifests are published: they name folders as images, below `data_root`, wherever that is."""
        first = load_task_set("dtd,eurosat", data_root=data_root, shots=2, seed=5)
        write_manifest(first.manifest, tmp_path / "manifest.json")
        kept = read_manifest(tmp_path / "manifest.json")
        assert kept["options"]["sources"] == {"dtd": "dtd", "eurosat": "eurosat"}
        assert str(data_root) not in json.dumps(kept)
        moved = copy_of("dtd", data_root, copy_of("eurosat", data_root, tmp_path))
        again = load_task_set("dtd,eurosat", data_root=moved, seed=9, manifest=kept)
        assert again.manifest == kept
        assert [len(task.train) for task in again] == [2 * 47, 2 * 10]
        for one, other in zip(first, again, strict=True):
            assert one.class_names == other.class_names
            for split in SPLITS:
                keys = read_column(one.split(split), "key")
                assert keys == read_column(other.split(split), "key")
                assert sorted(keys) == kept["tasks"][one.name][split]
                assert all((data_root / key).is_file() for key in keys)

    def test_one_that_does_not_fit(self, data_root):
        manifest = load_task_set("dtd", data_root=data_root).manifest
        with pytest.raises(ValueError, match="`manifest` belongs to the task set 'dtd', not to 'eurosat'"):
            load_task_set("eurosat", data_root=data_root, manifest=manifest)
        with pytest.raises(ValueError, match="`manifest` fixes the training images"):
            load_task_set("dtd", data_root=data_root, manifest=manifest, shots=2)
        with pytest.raises(ValueError, match="was written for dtd, which is no place of dtd on the Hub: give `data_r"):
            load_task_set("dtd", manifest=manifest)
        manifest["tasks"]["dtd"]["test"].append(manifest["tasks"]["dtd"]["train"][0])
        with pytest.raises(ValueError, match=r"`manifest` names 'dtd/images/.*' of task 'dtd' twice"):
            load_task_set("dtd", data_root=data_root, manifest=manifest)


class TestNames:
    ONE_EACH = {"train": 1, "validation": 1, "test": 1}  # noqa: RUF012 (a constant)

    def test_numbers_are_no_names(self, tmp_path, monkeypatch):
        """CLIP would be asked for `a photo of a 17`."""
        monkeypatch.setattr(benchmark_data, "raw_names", lambda _: [str(number) for number in range(47)])
        benchmark_data.folder("dtd", tmp_path, self.ONE_EACH)
        with pytest.raises(ValueError, match="has 47 classes and no 'banded', 'chequered', 'zigzagged' in task 'dtd'"):
            load_task_set("dtd", data_root=tmp_path, shots=1)

    @pytest.mark.parametrize("spelling", [str.upper, lambda name: name.replace(" ", "_").replace("-", " ")])
    def test_spellings_do_not_matter(self, spelling, tmp_path, monkeypatch):
        names = [spelling(name) for name in benchmark_data.raw_names("oxford_flowers")]
        monkeypatch.setattr(benchmark_data, "raw_names", lambda _: names)
        benchmark_data.folder("oxford_flowers", tmp_path, self.ONE_EACH)
        task = load_task_set("oxford_flowers", data_root=tmp_path, shots=1).tasks[0]
        assert spelling("pink primrose").replace("_", " ") in task.class_names
