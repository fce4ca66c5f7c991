from __future__ import annotations

import re
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from paths import RECIPES

from jscpt_peft.data import read_manifest, write_manifest
from jscpt_peft.data.icons import FILE, STYLES, icons_task_set

ICONS = RECIPES / "assets" / "icons"


def test_all_icons_are_there_and_no_drawing_is_in_two_splits():
    task_set = icons_task_set(ICONS)
    assert list(task_set.class_names) == list(STYLES)
    assert len({tuple(names) for names in task_set.class_names.values()}) == 1
    sizes = {split: [len(each) for each in task_set.split(split)] for split in ("train", "test")}
    assert sizes == {"train": [542, 463, 330, 344], "test": [549, 466, 370, 360]}
    held_out = sum(len(each) for split in ("validation", "dev") for each in task_set.split(split))
    assert sum(map(sum, sizes.values())) + held_out == 4269
    pixels = Counter()
    for split in ("train", "validation", "dev", "test"):
        pixels.update({row["image"].tobytes() for tests in task_set.split(split) for row in tests})
    assert max(pixels.values()) == 1
    image = np.asarray(task_set.tasks[3].test[0]["image"].convert("RGB"))
    assert image.shape == (64, 64, 3) and image.std() > 10


def test_every_set_has_its_licence_beside_it():
    licences = dict(
        re.findall(r"^\| ([\w-]+) \|.*\| ([^|]*\))\s*\|", (ICONS / "LICENSES.md").read_text(), re.MULTILINE)
    )
    sets = {key.rpartition("/")[2].partition("__")[0] for key in pq.read_table(ICONS / FILE)["key"].to_pylist()}
    allowed = ("MIT", "ISC", "Apache-2.0", "CC-BY-4.0")
    assert {name for name in sets if not any(f"({each})" in licences.get(name, "") for each in allowed)} == set()


def test_sampling_and_the_manifest(tmp_path):
    two = icons_task_set(ICONS, shots=2, seed=3)
    assert [len(train) for train in two.split("train")] == [2 * 31] * 4
    write_manifest(two.manifest, tmp_path / "manifest.json")
    assert icons_task_set(ICONS, seed=8, manifest=read_manifest(tmp_path / "manifest.json")).manifest == two.manifest


def test_a_missing_and_a_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no icons\.parquet: take recipes/assets/icons"):
        icons_task_set(tmp_path)
    shutil.copy(ICONS / "README.md", tmp_path / FILE)
    with pytest.raises(ValueError, match="does not hold the icons"):
        icons_task_set(tmp_path)
