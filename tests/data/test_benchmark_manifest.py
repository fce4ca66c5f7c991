"""What is known of the benchmarks' class names, and the manifest of a benchmark that is read from a folder."""

from __future__ import annotations

import json
import shutil

import benchmark_data
import pytest

from jscpt_peft.data import load_task_set, read_column, read_manifest, write_manifest


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("office_home", "dtd", "eurosat"):
        benchmark_data.folder(name, root)
    return root


class TestManifest:
    def test_it_names_every_image_and_is_used_again(self, data_root, tmp_path):
        first = load_task_set("office_home", data_root=data_root, shots=1, seed=5)
        write_manifest(first.manifest, tmp_path / "manifest.json")
        kept = read_manifest(tmp_path / "manifest.json")
        assert kept["options"]["sources"] == {"office_home": "office_home"}
        again = load_task_set("office_home", data_root=data_root, seed=9, manifest=kept)
        for one, other in zip(first, again, strict=True):
            assert one.class_names == other.class_names
            for split in ("train", "validation", "dev", "test"):
                keys = read_column(one.split(split), "key")
                assert keys == read_column(other.split(split), "key")
                assert sorted(keys) == kept["tasks"][one.name][split]
                assert all((data_root / key).is_file() for key in keys)

    def test_it_names_no_place_on_the_machine(self, data_root, tmp_path):
        """Manifests are published: they name folders as images, below `data_root`, wherever that is."""
        written = load_task_set("dtd,eurosat", data_root=data_root, shots=2).manifest
        assert str(data_root) not in json.dumps(written)
        assert written["options"]["sources"] == {"dtd": "dtd", "eurosat": "eurosat"}
        shutil.copytree(data_root, tmp_path / "moved")
        again = load_task_set("dtd,eurosat", data_root=tmp_path / "moved", manifest=written)
        assert again.manifest == written
        assert [len(task.train) for task in again] == [2 * 47, 2 * 10]

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
    def test_numbers_are_no_names(self, tmp_path, monkeypatch):
        """CLIP would be asked for `a photo of a 17`."""
        monkeypatch.setattr(benchmark_data, "raw_names", lambda _: [str(number) for number in range(47)])
        benchmark_data.folder("dtd", tmp_path, {"train": 1, "validation": 1, "test": 1})
        with pytest.raises(ValueError, match="has 47 classes and no 'banded', 'chequered', 'zigzagged' in task 'dtd'"):
            load_task_set("dtd", data_root=tmp_path, shots=1)

    @pytest.mark.parametrize("spelling", [str.upper, lambda name: name.replace(" ", "_").replace("-", " ")])
    def test_spellings_do_not_matter(self, spelling, tmp_path, monkeypatch):
        names = [spelling(name) for name in benchmark_data.raw_names("oxford_flowers")]
        monkeypatch.setattr(benchmark_data, "raw_names", lambda _: names)
        benchmark_data.folder("oxford_flowers", tmp_path, {"train": 1, "validation": 1, "test": 1})
        task = load_task_set("oxford_flowers", data_root=tmp_path, shots=1).tasks[0]
        assert spelling("pink primrose").replace("_", " ") in task.class_names
