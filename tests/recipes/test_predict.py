"""`recipes/predict.py`, and the base model that recipes load an adapter on, on this machine or another."""

from __future__ import annotations

import json
import shutil

import adapted
import predict
import pytest
from adapter import adapter_config, base_of, load_adapter
from paths import TINY_CLIP
from PIL import Image
from recipe_runs import fails

from jscpt_peft.model.adapter_file import DIGEST_FILE

TASK = "sketch"  # three classes
REMEDY = "--model_name_or_path"


@pytest.fixture
def folder(tmp_path):
    adapted.adapted_clip().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def trained_on(folder, base: str | None):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
    (folder / DIGEST_FILE).unlink(missing_ok=True)
    return adapter_config(str(folder), None)


def test_as_many_classes_as_are_asked_for_and_there(folder, image, capsys):
    (expected,) = adapted.adapted_clip().predict(Image.open(image), task=TASK)
    for top, places in ("1", 1), ("3", 3), ("99", 3):
        predict.main(["--adapter", str(folder), "--task", TASK, "--top", top, image])
        printed = capsys.readouterr().out
        assert printed.count("%") == places
        assert f" {places}. " in printed and f" {places + 1}. " not in printed
        assert f"{next(iter(expected.values())):.1%}" in printed


def test_mistakes_are_told_in_a_line(folder, image, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")  # Pillow refuses it by an error that is no OSError
    named = ["--task", TASK]
    for arguments, message in (
        ([*named, image, "--top", "0"], "`--top` is 0: give the number of classes to print, at least 1."),
        (["--task", "skech", image], "Did you mean 'sketch'?"),
        (["--task", "", image], "`task` '' is not one of the adapter's tasks"),
        ([image], "`--task` is missing: name one of painting, sketch."),
        ([*named, image, "--adaptor", "x"], "unknown argument '--adaptor'. Did you mean 'adapter'?"),
        ([*named, image, "--revision", "v2"], "`revision` 'v2' says nothing of the folder `adapter`"),
        ([*named, "no.png", image], "image no.png does not exist"),
        ([*named, 300 * "x" + ".png"], "does not exist, or is no file"),
        ([*named, str(tmp_path / "text.png")], "text.png"),
        ([*named, str(tmp_path / "bomb.png")], "bomb.png"),
    ):
        assert message in fails(capsys, predict.main, "--adapter", folder, *arguments)


def test_images_are_read_by_the_batch(folder, image, monkeypatch):
    """However many there are, they are never all in memory: the model is given paths."""
    given, load = [], predict.load_for_task

    def watched(arguments):
        model, *rest = load(arguments)
        of_all = model.predict
        monkeypatch.setattr(model, "predict", lambda images, **more: given.extend(images) or of_all(images, **more))
        return model, *rest

    monkeypatch.setattr(predict, "load_for_task", watched)
    predict.main(["--adapter", str(folder), "--task", TASK, image, image])
    assert [str(each) for each in given] == [image, image]


# ---- the base model -------------------------------------------------------------------------------------------------


def test_a_base_that_is_there_or_on_the_hub_or_the_small_clip_of_another_machine(folder):
    for base in ("openai/clip-vit-base-patch16", str(TINY_CLIP)):
        assert base_of(trained_on(folder, base), "mine") == base
    for elsewhere in ("/gone/recipes/assets/tiny-clip", "C:\\gone\\recipes\\assets\\tiny-clip"):
        assert base_of(trained_on(folder, elsewhere), "mine") == str(TINY_CLIP)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("/gone/clip", "was trained on the model in /gone/clip"),
        ("C:\\gone\\clip", "was trained on the model in C:\\gone\\clip"),
        ("runs/base/clip", "was trained on the model in runs/base/clip"),
        ("/" + 300 * "x", "was trained on the model in /xxx"),  # a path that cannot even be looked for
        (None, "does not name its base"),
    ],
)
def test_any_other_base_is_asked_for(folder, image, tmp_path, capsys, base, message):
    config = trained_on(folder, base)
    command = ["--adapter", str(folder), "--task", TASK, image]
    printed = fails(capsys, predict.main, *command)
    assert message in printed and REMEDY in printed
    shutil.copytree(TINY_CLIP, tmp_path / "clip")
    predict.main([*command, REMEDY, str(tmp_path / "clip")])
    assert "%" in capsys.readouterr().out
    if base is not None:
        with pytest.raises(ValueError, match="is neither a folder nor a name on the Hub"):
            load_adapter(config, str(folder), base=base)


def test_names_are_printed_and_not_obeyed(image, capsys, monkeypatch):
    monkeypatch.setattr(predict, "predict", lambda _: [{"cat\x1b]52;c;x\x07[red]": 1.0}])
    predict.main(["--adapter", "mine", "--task", TASK, image])
    shown = capsys.readouterr().out
    assert "\x1b]" not in shown and "\x07" not in shown
    assert r"cat\x1b]52;c;x\x07[red]" in "".join(shown.split())
