"""Loading adapters from the Hub (its stand-in): what works, and what the errors say."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import oracles
import predict
import prompted
import pytest
import torch
from hub_server import Hub
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import CLIPImageProcessorPil

from jscpt_peft.model.adapter_file import DIGEST_FILE

pytestmark = pytest.mark.slow  # a process of its own loads everything once

RECIPES = Path(__file__).parents[2] / "recipes"

# Every case, in one process, as a user would, and prints what came of it.
PROGRAM = """
import io, json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
import jscpt_peft, predict
from peft import AutoPeftModel, PeftModel
from transformers import CLIPModel

first_commit, picture = sys.argv[1:]

def of_hub(name, **keywords):
    clip = CLIPModel.from_pretrained("user/clip", dtype=torch.float32)
    return PeftModel.from_pretrained(clip, name, **keywords)

def outcome(load, *arguments, **keywords):
    try:
        model = load(*arguments, **keywords)
    except Exception as error:
        why = error.__cause__ or error.__context__
        return {"error": type(error).__name__, "message": str(error), "because": type(why).__name__}
    pixels = torch.linspace(-1, 1, 3 * 3 * 32 * 32).view(3, 3, 32, 32)
    if not hasattr(model, "classify"):
        return {"kind": type(model).__name__}
    with torch.no_grad():
        logits = model.eval().classify(pixels, [0, 1, 2]).logits[:, :2]
    return {"kind": type(model).__name__, "logits": logits.tolist()}

def predicted(*arguments):
    printed = io.StringIO()
    predict.console.file, code = printed, 0
    try:
        predict.main(["--task", "photo", picture, *arguments])
    except SystemExit as stop:
        code = stop.code
    return {"code": code, "printed": printed.getvalue().strip()}

loaded = {
    "plain": outcome(of_hub, "user/adapter"),
    "auto": outcome(AutoPeftModel.from_pretrained, "user/adapter", dtype=torch.float32),
    "branch": outcome(of_hub, "user/adapter", revision="other"),
    "commit": outcome(of_hub, "user/adapter", revision=first_commit),
    "no token": outcome(of_hub, "user/private", token=False),
    "own token": outcome(of_hub, "user/private"),
    "gated": outcome(of_hub, "user/gated", token="hf_other"),
    "no revision": outcome(of_hub, "user/adapter", revision="v9"),
    "cut off": outcome(of_hub, "user/cut-off"),
    "pickle": outcome(of_hub, "user/pickle"),
    "lora": outcome(of_hub, "user/lora"),
}
names = ("adapter", "nothing", "pickle", "unknown-type", "broken-json")
shown = {name: predicted("--adapter", "user/" + name) for name in names}
shown["branch"] = predicted("--adapter", "user/adapter", "--revision", "other")
shown["no base"] = predicted("--adapter", "user/adapter", "--model_name_or_path", "user/nothing")
print(json.dumps([loaded, shown]))
"""


class Harmful:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


def saved(folder: Path, **options) -> Path:
    """A saved adapter whose base model is `user/clip`."""
    model = prompted.prompted_clip(torch.float32, **options)
    model.peft_config["default"].base_model_name_or_path = "user/clip"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def other_adapter(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("other"), init_seed=5)


@pytest.fixture(scope="module")
def harmful(tmp_path_factory) -> Path:
    """What a pickle of weights writes where it is executed."""
    return tmp_path_factory.mktemp("harm") / "executed"


@pytest.fixture(scope="module")
def hub(adapter, other_adapter, harmful, tmp_path_factory):
    """The stand-in with base models, a good adapter in two versions, and what can be wrong with one."""
    place = tmp_path_factory.mktemp("hub")
    oracles.tiny_clip(dtype=torch.float32).save_pretrained(place / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(place / "clip")
    get_peft_model(oracles.tiny_clip(dtype=torch.float32), LoraConfig(target_modules=["q_proj"])).save_pretrained(
        place / "lora"
    )
    torch.save({"weight": Harmful(harmful)}, place / "adapter_model.bin")
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    weights, config = files["adapter_model.safetensors"], json.loads(files["adapter_config.json"])
    without = {name: files[name] for name in files.keys() - {DIGEST_FILE, "adapter_model.safetensors"}}
    with Hub() as hub:
        hub.add("user/clip", place / "clip")
        hub.add("user/adapter", adapter)
        hub.add("user/adapter", other_adapter, revision="other")
        hub.add("user/private", adapter, private=True)
        hub.add("user/gated", adapter, gated=True)
        hub.add("user/cut-off", {**files, "adapter_model.safetensors": weights[:-10]})
        hub.add("user/pickle", {**without, "adapter_model.bin": place / "adapter_model.bin"})
        hub.add("user/lora", place / "lora")
        hub.add("user/unknown-type", {**files, "adapter_config.json": json.dumps({**config, "peft_type": "NEWER"})})
        hub.add("user/broken-json", {**files, "adapter_config.json": "<html>"})
        yield hub


@pytest.fixture(scope="module")
def outcomes(hub, tmp_path_factory) -> list[dict[str, dict]]:
    """What came of every load, and what recipes/predict.py printed."""
    home = tmp_path_factory.mktemp("home")
    Image.new("RGB", (40, 30), "orange").save(home / "picture.png")
    commit = hub.repositories["models", "user/adapter"].commits[0][0]
    command = [sys.executable, "-c", PROGRAM, commit, str(home / "picture.png")]
    done = hub.run(command, home=home, PYTHONPATH=str(RECIPES))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def loaded(outcomes):
    return outcomes[0]


@pytest.fixture(scope="module")
def shown(outcomes):
    return outcomes[1]


def local_logits(folder: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), folder)
    pixels = torch.linspace(-1, 1, 3 * 3 * 32 * 32).view(3, 3, 32, 32)
    with torch.no_grad():
        return model.eval().classify(pixels, [0, 1, 2]).logits[:, :2]


def test_what_is_loaded_is_what_was_saved(loaded, adapter, other_adapter):
    expected, other = local_logits(adapter), local_logits(other_adapter)
    assert not torch.allclose(expected, other, atol=0.1)
    for case in ("plain", "auto", "commit", "own token"):
        torch.testing.assert_close(torch.tensor(loaded[case]["logits"]), expected, atol=1e-5, rtol=0)
        assert loaded[case]["kind"] == "JSCPTPeftModel"
    torch.testing.assert_close(torch.tensor(loaded["branch"]["logits"]), other, atol=1e-5, rtol=0)


NOT_FOUND = "Can't find 'adapter_config.json' at 'user/"  # PEFT's words; the Hub's stand above them in the traceback


@pytest.mark.parametrize(
    "case, because, words",
    [
        ("no token", "RepositoryNotFoundError", NOT_FOUND),  # nobody is told of a private one
        ("gated", "GatedRepoError", NOT_FOUND),
        ("no revision", "RevisionNotFoundError", NOT_FOUND),
        ("cut off", "SafetensorError", "the adapter 'user/cut-off' is no safetensors file, or not whole"),
        ("pickle", "UnpicklingError", "the adapter 'user/pickle' is a pickle of more than tensors"),
    ],
)
def test_what_cannot_be_loaded(loaded, case, because, words):
    assert (loaded[case]["error"], loaded[case]["because"]) == ("ValueError", because)
    assert words in loaded[case]["message"]


def test_another_methods_adapter_stays_with_its_own_class(loaded):
    assert loaded["lora"] == {"kind": "PeftModel"}


def test_a_pickle_is_not_executed(loaded, shown, hub, harmful):
    assert not harmful.exists()
    assert "error" in loaded["pickle"]
    assert shown["pickle"]["code"] == 1
    torch.load(io.BytesIO(hub.files("user/pickle")["adapter_model.bin"]), weights_only=False)
    assert harmful.read_text() == "executed"  # it would have been, by a loader that trusts it


def test_predict_shows_the_adapters_own_prediction(shown, adapter, other_adapter):
    for case, folder in (("adapter", adapter), ("branch", other_adapter)):
        model = PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), folder)
        best, probability = next(iter(model.predict(Image.new("RGB", (40, 30), "orange"), task="photo")[0].items()))
        assert shown[case]["code"] == 0
        assert f"{best} {probability:.1%}" in shown[case]["printed"]


@pytest.mark.parametrize(
    "case, words",
    [
        ("nothing", "`adapter` user/nothing: 404 Client Error. Repository Not Found"),
        ("unknown-type", "its `peft_type` is 'NEWER', not 'JSCPT'"),
        ("broken-json", "adapter_config.json is no adapter's configuration (it is no JSON (line 1: Expecting value))"),
        ("no base", "`model_name_or_path` 'user/nothing' cannot be loaded"),
    ],
)
def test_predict_fails_in_one_line(shown, case, words):
    assert shown[case]["code"] == 1
    assert shown[case]["printed"].startswith("Error: ")
    assert "\n" not in shown[case]["printed"]
    assert words in shown[case]["printed"]


@pytest.mark.parametrize(
    "adapter, words",
    [
        (
            "user/name",
            "`adapter` user/name: An error happened while trying to locate the file on the Hub and we cannot find",
        ),
        ("outputs/no/such/folder", "Can't find 'adapter_config.json' at 'outputs/no/such/folder'"),
    ],
)
def test_predict_without_network_or_folder(tmp_path, capsys, adapter, words):
    """The tests' own process is offline."""
    Image.new("RGB", (40, 30)).save(tmp_path / "picture.png")
    with pytest.raises(SystemExit):
        predict.main(["--adapter", adapter, str(tmp_path / "picture.png")])
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("Error: ") and "\n" not in printed
    assert words in printed
