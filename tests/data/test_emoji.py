from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
from PIL import Image
from published_emoji import published

from jscpt_peft.data import read_manifest, write_manifest
from jscpt_peft.data.emoji import STYLES, emoji_task_set


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The published task set's files, all of them the same image."""
    folder = tmp_path_factory.mktemp("built")
    Image.new("RGB", (4, 4)).save(folder / "one.png")
    for style in STYLES:
        for emoji, split in published():
            if split != "pretrain":
                path = folder / "emoji" / "tasks" / style / split / emoji.class_name / f"{emoji.name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(folder / "one.png", path)
    return folder / "emoji"


@pytest.fixture
def changed(built, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(built, tmp_path / "emoji", copy_function=os.link)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Hugging Face's cache folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    return tmp_path


def test_it_is_found_where_the_recipe_puts_it(built, home):
    (home / "jscpt_peft").mkdir()
    (home / "jscpt_peft" / "emoji").symlink_to(built)
    task_set = emoji_task_set()
    assert (task_set.name, task_set.manifest["task_set"]) == ("emoji", "emoji")
    assert list(task_set.class_names) == list(STYLES)
    assert len(task_set.class_names["google"]) == 57
    sizes = {split: sum(map(len, task_set.split(split))) for split in ("train", "validation", "dev", "test")}
    assert (sizes["train"], sizes["validation"] + sizes["dev"], sizes["test"]) == (1236, 500, 996)
    expected = Counter(
        f"google/{split}/{each.class_name}/{each.name}.png" for each, split in published() if split == "test"
    )
    assert Counter(task_set.manifest["tasks"]["google"]["test"]) == expected


def test_sampling_and_the_manifest(built, tmp_path):
    two = emoji_task_set(built, shots=2, seed=3)
    assert [len(train) for train in two.split("train")] == [2 * 57] * 4
    assert two.manifest["options"] == {"train_fraction": None, "shots": 2, "skip_bad_images": False}
    assert emoji_task_set(built, train_fraction=0.1, seed=3).manifest["seed"] == 3
    write_manifest(two.manifest, tmp_path / "manifest.json")
    again = emoji_task_set(built, seed=8, manifest=read_manifest(tmp_path / "manifest.json"))
    assert again.manifest == two.manifest
    assert [list(train["key"]) for train in again.split("train")] == [
        list(train["key"]) for train in two.split("train")
    ]
    with pytest.raises(ValueError, match="`manifest` belongs to the task set 'shapes', not to 'emoji'"):
        emoji_task_set(built, manifest={**two.manifest, "task_set": "shapes"})


@pytest.mark.usefixtures("home")
def test_where_it_is_missing_the_command_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`python tools/prepare_emoji\.py`, which needs npm"):
        emoji_task_set()
    with pytest.raises(FileNotFoundError, match=r"is not in .*: .*prepare_emoji\.py --output .*elsewhere`"):
        emoji_task_set(tmp_path / "elsewhere")


def test_another_task_set_is_told_from_it(changed):
    def difference() -> str:
        with pytest.raises(ValueError, match=r"another task set than emoji: .*prepare_emoji\.py --output ") as error:
            emoji_task_set(changed)
        return str(error.value)

    next((changed / "tasks" / "openmoji" / "train" / "heart").iterdir()).unlink()
    assert "in openmoji: {'test': 249, 'train': 308, 'validation': 125} instead of {'train': 309" in difference()
    heart = changed / "tasks" / "twitter" / "test" / "heart"
    heart.rename(heart.with_name("soul"))
    assert "classes: 58 instead of 57" in difference()
    shutil.rmtree(changed / "tasks" / "openmoji")
    assert "tasks: ['fluent3d', 'google', 'twitter'] instead of ['fluent3d', 'google', 'openmoji'" in difference()
