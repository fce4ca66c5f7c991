"""Which base model the recipes load an adapter on, on this machine or another than that of its training."""

from __future__ import annotations

import json
import shutil

import adapted
import predict
import pytest
from adapter import adapter_config, base_of, load_adapter
from paths import TINY_CLIP
from PIL import Image

REMEDY = "--model_name_or_path"


@pytest.fixture
def folder(tmp_path):
    adapted.adapted_clip().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def trained_on(folder, base: str | None):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
    return adapter_config(str(folder), None)


@pytest.mark.parametrize("base", ["openai/clip-vit-base-patch16", str(TINY_CLIP)])
def test_a_base_that_is_there_or_on_the_hub(folder, base):
    assert base_of(trained_on(folder, base), "mine") == base


@pytest.mark.parametrize("elsewhere", ["/gone/recipes/assets/tiny-clip", "C:\\gone\\recipes\\assets\\tiny-clip"])
def test_the_packages_own_clip_of_another_machine(folder, elsewhere):
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
def test_any_other_one_is_asked_for(folder, tmp_path, capsys, base, message):
    trained_on(folder, base)
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "picture.png")
    command = ["--adapter", str(folder), "--task", next(iter(adapted.TASKS)), str(tmp_path / "picture.png")]
    with pytest.raises(SystemExit):
        predict.main(command)
    printed = capsys.readouterr().out
    assert message in printed and REMEDY in printed
    shutil.copytree(TINY_CLIP, tmp_path / "clip")
    predict.main([*command, REMEDY, str(tmp_path / "clip")])
    assert "%" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["/gone/clip", "runs/base/clip"])
def test_a_base_that_is_given_but_not_there(folder, base):
    config = adapter_config(str(folder), None)
    with pytest.raises(ValueError, match=f"`model_name_or_path` {base} is neither a folder nor a name on the Hub"):
        load_adapter(config, str(folder), base=base)
