from __future__ import annotations

import prompted
import pytest
import torch
from image_folders import flat

from jscpt_peft.data import TASK_SETS, load_task_set, read_manifest


def test_options_reach_the_task_sets(tmp_path):
    flat(tmp_path, "art", cat=10)
    folder = load_task_set("folder", data_root=tmp_path, shots=2, seed=3, test_fraction=0.5)
    assert folder.name == "folder"
    assert (len(folder.tasks[0].train), len(folder.tasks[0].test)) == (2, 5)
    shapes = load_task_set("shapes", shots=1, seed=3, spurious_strength=0.9)
    assert shapes.name == "shapes"
    assert len(shapes.tasks[0].train) == len(shapes.tasks[0].class_names)
    assert shapes.manifest["seed"] == folder.manifest["seed"] == 3


@pytest.mark.parametrize(("name", "nearest"), [("Folder", "folder"), ("ofice_home", "office_home")])
def test_a_typo_suggests_the_nearest_name(name, nearest):
    with pytest.raises(ValueError, match=rf"`name` is {name!r}: .*Did you mean {nearest!r}\?") as error:
        load_task_set(name)
    assert all(known in str(error.value) for known in TASK_SETS)


def test_data_root_is_required_or_refused():
    with pytest.raises(ValueError, match="`data_root` is None: 'folder' needs"):
        load_task_set("folder")
    with pytest.raises(ValueError, match="`data_root` is 'here', which the task set 'shapes' does not take"):
        load_task_set("shapes", data_root="here")


@pytest.mark.parametrize("path", [None, "", 5, b"x", ["x"], "a\0b"])
def test_what_is_no_path_is_refused(path):
    model = prompted.prompted_clip()
    plain = {"dtype": torch.float32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with pytest.raises(ValueError, match=r"`directory`"):
        model.export_task("photo", path, **plain)
    with pytest.raises(ValueError, match=r"`manifest`"):
        read_manifest(path)
    with pytest.raises(ValueError, match=r"`data_root`"):
        load_task_set("folder", path)
