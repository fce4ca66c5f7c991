"""`recipes/predict.py` on an adapter of the small CLIP: what it prints, and how it fails."""

from __future__ import annotations

import adapted
import jscpt_peft.model.prediction as prediction
import predict
import pytest
from PIL import Image

TASK = "sketch"  # three classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapted.adapted_clip().save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def run(capsys, folder, *arguments) -> str:
    predict.main(["--adapter", str(folder), *arguments])
    return capsys.readouterr().out


def fails(capsys, folder, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        predict.main(["--adapter", str(folder), *arguments])
    assert stop.value.code == 1
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("Error: ") and "\n" not in printed
    return printed


@pytest.mark.parametrize(("top", "places"), [("1", 1), ("3", 3), ("99", 3)])
def test_as_many_classes_as_are_asked_for_and_there(folder, picture, capsys, top, places):
    printed = run(capsys, folder, "--task", TASK, "--top", top, picture)
    assert printed.count("%") == places
    assert f" {places}. " in printed and f" {places + 1}. " not in printed
    (expected,) = adapted.adapted_clip().predict(Image.open(picture), task=TASK)
    assert f"{next(iter(expected.values())):.1%}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", TASK, "--top", "0"], "`--top` is 0: give the number of classes to print, at least 1."),
        (["--task", "skech"], "`task` 'skech' is not one of the adapter's tasks"),
        (["--task", ""], "`task` '' is not one of the adapter's tasks"),
        ([], "`--task` is missing: name one of painting, sketch."),
        (["--task", TASK, "no.png"], "image no.png does not exist."),
    ],
    ids=str,
)
def test_mistakes_are_told_in_a_line(folder, picture, capsys, arguments, message):
    assert message in fails(capsys, folder, *arguments, picture)


def test_a_picture_too_large_to_be_one(folder, tmp_path, capsys):
    """Pillow refuses it while reading, by an error that is no OSError."""
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    printed = fails(capsys, folder, "--task", TASK, str(tmp_path / "bomb.png"))
    assert "bomb.png" in printed and "cannot be read" in printed


def test_pictures_are_read_by_the_batch(folder, picture, capsys, monkeypatch):
    """However many there are, they are never all in memory: `predict` gets paths."""
    given, of_all = [], prediction.pixel_batches
    monkeypatch.setattr(
        prediction, "pixel_batches", lambda images, *rest: of_all(given.append(list(images)) or given[0], *rest)
    )
    run(capsys, folder, "--task", TASK, picture, picture)
    assert [str(image) for image in given[0]] == [picture, picture]
