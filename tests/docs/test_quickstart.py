"""The code of the quickstarts and of the page on methods, as it stands there, offline and on the small CLIP."""

from __future__ import annotations

import matplotlib
import pytest
from documents import README, blocks
from paths import ROOT, TINY_CLIP

from jscpt_peft.data import shapes_task_set
from jscpt_peft.model.heads import FEATURE_HEADS
from jscpt_peft.model.prompts import PROMPT_SOURCES

# A small model instead of ViT-B/16, images of its size, and one step.
SUBSTITUTES = {
    "openai/clip-vit-base-patch16": TINY_CLIP.as_posix(),
    "224, 224": "64, 64",
    '"outputs/mine"': '"outputs/mine", max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to=[]',
    '"outputs/coop"': '"outputs/coop", use_cpu=True',
}
CLASSES = ("chair", "alarm_clock")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """`photos/<task>/<class>/*.png` and two images in the current folder."""
    monkeypatch.chdir(tmp_path)
    drawn = [row["image"] for row in shapes_task_set(shots=1).tasks[0].test.select(range(8))]
    for task in ("art", "clipart"):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "photos" / task / name
            folder.mkdir(parents=True)
            for index, image in enumerate(drawn):
                image.rotate(90 * label).save(folder / f"{index}.png")
    for name in ("photo.jpg", "other.jpg"):
        drawn[0].save(name)


def run(blocks: list[str], **names) -> dict:
    """Runs code blocks one after the other, as a reader would; returns the names that they define."""
    matplotlib.use("agg")
    for block in blocks:
        for written, used in SUBSTITUTES.items():
            block = block.replace(written, used)
        exec(block, names)
    return names


@pytest.mark.usefixtures("photos")
def test_readme():
    printed = []
    run(blocks(README, "python")[:1], print=printed.append)
    assert set(printed[0][0]) == {"chair", "alarm clock"}


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_quickstart(tmp_path):
    names = run(blocks(ROOT / "docs" / "quickstart.md", "python"))
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {
        path.name for path in tmp_path.glob("my-adapter/*")
    }
    assert names["model"].task_names == ["art", "clipart", "sketch"]


@pytest.fixture
def registries():
    """Restored after a test that adds to them."""
    kept = [(known, dict(known)) for known in (PROMPT_SOURCES, FEATURE_HEADS)]
    yield
    for known, before in kept:
        known.clear()
        known.update(before)


@pytest.mark.usefixtures("photos", "registries")
def test_methods():
    names = run(blocks(ROOT / "docs" / "methods.md", "python"))
    assert set(names["model"].predict("photo.jpg", task="art")[0]) == {"chair", "alarm clock"}
