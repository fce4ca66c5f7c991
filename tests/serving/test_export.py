"""The exported classifier, against `classify` and `predict` of the model that it was taken from."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import prompted
import pytest
import torch
from full_disk import no_file_larger_than
from PIL import Image
from transformers.models.clip.modeling_clip import CLIPAttention

from jscpt_peft.serving import export
from jscpt_peft.serving.base_names import public_name

STATISTICS = {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.25)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and the folder of one of its tasks, which tests only add images to."""
    model = prompted.prompted_clip(torch.float32)
    return model, model.export_task("sketch", tmp_path_factory.mktemp("exported") / "sketch", **STATISTICS)


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """A copy of that folder without the images, beside nothing."""
    return shutil.copytree(exported[1], tmp_path / "served", ignore=shutil.ignore_patterns("picture*"))


@pytest.fixture
def traced(exported, monkeypatch):
    """For tests of files: whatever is exported, its graph is that of the fixture, which is there already."""
    program = torch.export.load(exported[1] / "classifier.pt2")
    monkeypatch.setattr(export, "_program", lambda *_: program)


def load(directory: Path):
    return export.load_task(directory)[0]


def pixels(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count), dtype=dtype)


def wanted(model, task: str, images: torch.Tensor) -> torch.Tensor:
    """Logits by `classify`, over the task's own classes."""
    with torch.no_grad():
        logits = model.classify(images, model.task_names.index(task)).logits
    return logits[:, : len(prompted.TASKS[task])]


def off(model, task: str, directory: Path) -> float:
    """The largest difference of a cosine, in float32."""
    images, scale = pixels(3, torch.float32), model.get_base_model().logit_scale.exp()
    logits = load(directory)(images)
    assert logits.dtype == torch.float32 and logits.shape == (3, len(prompted.TASKS[task]))
    return ((logits - wanted(model, task, images)) / scale).abs().max()


# ---- equal logits ---------------------------------------------------------------------------------------------------


def test_logits_are_those_of_classify_for_any_batch(tmp_path):
    """Of what `tests/model/test_methods.py` does not export."""
    options = {"intervention_shared": True, "learn_masks": False, "implementation": "eager", "prompt_depth": 2}
    model = prompted.prompted_clip(**options)
    classifier = load(model.export_task("sketch", tmp_path / "sketch", dtype=torch.float64))
    for count in (1, 3, 7):
        images = pixels(count)
        assert (classifier(images) - wanted(model, "sketch", images)).abs().max() <= 1e-10


def test_each_task_has_its_own_classes_and_prompts(exported, tmp_path):
    model, sketch = exported
    assert off(model, "sketch", sketch) <= 1e-6
    assert off(model, "photo", model.export_task("photo", tmp_path / "photo")) <= 1e-6


def test_half_the_precision_is_half_the_tower(exported, tmp_path):
    model, whole = exported
    half = model.export_task("photo", tmp_path / "half", dtype=torch.bfloat16)
    assert off(model, "photo", half) <= 0.03
    # its weights are those that the model would have in bfloat16
    assert off(prompted.prompted_clip(torch.float32).to(torch.bfloat16), "photo", half) <= 0.01
    assert 2 * _weights(half, "vision") == _weights(whole, "vision")
    nodes = torch.export.load(half / "classifier.pt2").graph.nodes
    casts = [node.args[0].name for node in nodes if node.target is torch.ops.aten.to.dtype]
    assert "pixel_values" in casts and not [name for name in casts if name.startswith(("p_vision", "p_projection"))]


def test_a_base_in_bfloat16_whose_adapter_peft_keeps_in_float32(tmp_path):
    model = prompted.prompted_clip(torch.bfloat16)
    assert model.prompt_tokens("vision").dtype == torch.float32
    assert off(model, "sketch", model.export_task("sketch", tmp_path / "sketch", dtype=torch.float32)) <= 0.01


def test_without_the_adapter_it_is_the_base_model(tmp_path):
    model = prompted.prompted_clip()
    images = pixels(3)
    with model.disable_adapter():
        classifier = load(model.export_task("photo", tmp_path / "photo", dtype=torch.float64))
        plain = wanted(model, "photo", images)
    assert (classifier(images) - plain).abs().max() <= 1e-10
    assert (plain - wanted(model, "photo", images)).abs().max() > 0.1


def test_the_model_stays_as_it_is(tmp_path):
    model = prompted.prompted_clip()
    images = pixels(2)
    expected = wanted(model, "photo", images)
    for module in model.modules():
        if isinstance(module, CLIPAttention):
            module.dropout = 0.5
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    model.train()
    classifier = load(model.export_task("photo", tmp_path / "photo", dtype=torch.float64))
    assert (classifier(images) - expected).abs().max() <= 1e-10  # a classifier drops nothing
    assert model.training
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], p) and after[name].requires_grad == g for name, (p, g) in before.items())


# ---- what is in it --------------------------------------------------------------------------------------------------


def _weights(directory: Path, part: str = "") -> int:
    """Bytes of all weights, or of those whose names start with `part`."""
    state = torch.export.load(directory / "classifier.pt2").state_dict
    return sum(tensor.nbytes for name, tensor in state.items() if name.startswith(part))


def test_nothing_but_the_vision_tower_and_the_task_goes_along(exported):
    model, directory = exported
    state = torch.export.load(directory / "classifier.pt2").state_dict
    parts = {"vision", "projection", "head_parameters", "keys", "values", "classes"}
    assert {name.split(".")[0] for name in state} == parts
    assert state["classes"].shape == (20, 4)
    clip = model.get_base_model()
    tower = sum(
        p.nbytes for p in (*clip.vision_model.base_layer.parameters(), clip.visual_projection.base_layer.weight)
    )
    views = model.task_parameters()
    selection = sum(view[0].nbytes for name, view in views.items() if name not in ("vision", "text"))
    prompts = 2 * views["vision"][0].nbytes  # keys and values
    assert _weights(directory) == tower + selection + prompts + state["classes"].nbytes
    assert (directory / "classifier.pt2").stat().st_size < 1.1 * _weights(directory) + 250_000  # the graph


def test_no_path_of_this_machine_is_in_it(copied):
    here = str(Path(export.__file__).parents[2]).encode()
    with zipfile.ZipFile(copied / "classifier.pt2") as archive:
        assert [name for name in archive.namelist() if here in archive.read(name)] == []


def test_the_description(copied):
    about = json.loads((copied / "classifier.json").read_text())
    assert {path.name for path in copied.iterdir()} == {"classifier.pt2", "classifier.json", "README.md"}
    assert (about["task"], about["class_names"], about["image_size"]) == ("sketch", ["a", "b", "c", "d"], 32)
    assert (about["image_mean"], about["image_std"]) == ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    assert (about["dtype"], about["input_dtype"], about["class_template"]) == ("float32", "float32", "{}.")
    assert about["sha256"] == hashlib.sha256((copied / "classifier.pt2").read_bytes()).hexdigest()
    assert about["versions"]["torch"] == torch.__version__


def test_the_base_model_goes_by_a_name_that_others_understand():
    names = {"user/clip": "user/clip", "/home/me/my-clip": "my-clip", "C:\\me\\my-clip": "my-clip", None: None}
    assert {base: public_name(base) for base in names} == names


def test_what_is_not_whole_is_not_loaded(copied):
    assert export.load_task(copied)[1]["task"] == "sketch"
    program = copied / "classifier.pt2"
    program.write_bytes(program.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"classifier\.pt2 is not what classifier\.json beside it describes"):
        export.load_task(copied)
    assert "can run code" in (copied / "README.md").read_text()


def test_pickles_are_refused_whoever_vouches_for_them(copied):
    program, description = copied / "classifier.pt2", copied / "classifier.json"
    with zipfile.ZipFile(program) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (table,) = [name for name in entries if name.endswith("weights_config.json")]
    entries[table] = entries[table].replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    with zipfile.ZipFile(program, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    description.write_text(json.dumps(json.loads(description.read_text()) | {"sha256": digest}))
    with pytest.raises(ValueError, match="holds pickles"):
        export.load_task(copied)


def noise(width: int, height: int, mode: str) -> Image.Image:
    """A picture of random pixels; greyscale of 16 bits is mostly above 255."""
    if mode == "RGB":
        return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())
    levels = torch.randint(0, 2**16, (height, width), dtype=torch.int32).numpy()
    return Image.fromarray(levels.astype({"I;16": "uint16", "I;16B": ">u2", "I": "int32", "F": "float32"}[mode]))


def lines_of_readme(directory: Path) -> str:
    (lines,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), flags=re.DOTALL)
    return lines


def served(directory: Path, alone: bool) -> dict[str, float]:
    """What the lines of the README print of picture.jpg; `alone` where PyTorch and Pillow are all that there is."""
    printed = []
    if not alone:
        exec(lines_of_readme(directory), {"print": printed.append})
        return printed[0]
    blocked = ("jscpt_peft", "peft", "transformers", "safetensors", "accelerate", "datasets", "huggingface_hub")
    program = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n{lines_of_readme(directory)}"
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return ast.literal_eval(run.stdout)


@pytest.mark.parametrize(
    ("size", "mode", "file_format", "alone"),
    [((50, 37), "RGB", "JPEG", True), ((21, 64), "I;16B", "TIFF", False), ((50, 37), "I;16", "PNG", False)],
)
def test_the_lines_of_its_readme_give_what_predict_gives_with_torch_and_pillow_alone(
    exported, monkeypatch, size, mode, file_format, alone
):
    model, directory = exported
    monkeypatch.chdir(directory)
    noise(*size, mode).save("picture.jpg", format=file_format)
    assert Image.open("picture.jpg").mode == mode
    (predicted,) = model.predict(Image.open("picture.jpg"), task="sketch", **STATISTICS)
    assert served(directory, alone) == pytest.approx(predicted, abs=1e-6)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_the_lines_of_its_readme_refuse_greyscale_that_has_no_white(exported, monkeypatch, mode):
    monkeypatch.chdir(exported[1])
    noise(50, 37, mode).save("picture.jpg", format="TIFF")
    with pytest.raises(ValueError, match="greyscale of 32 bits does not say which level is white"):
        exec(lines_of_readme(exported[1]), {})


# ---- whole or not at all --------------------------------------------------------------------------------------------


def content(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


@pytest.mark.usefixtures("traced")
def test_an_earlier_export_is_replaced(exported, copied, tmp_path):
    exported[0].export_task("photo", copied)
    assert export.load_task(copied)[1]["task"] == "photo"
    assert {path.name for path in tmp_path.rglob("*")} == {"served", "classifier.pt2", "classifier.json", "README.md"}


@pytest.mark.usefixtures("traced")
def test_a_failure_leaves_what_was_there(exported, copied, tmp_path, monkeypatch):
    before, replace, called = content(tmp_path), export.os.replace, []

    def fail(*arguments):
        called.append(arguments)
        if len(called) != 2:  # the second one puts the new export in place
            return replace(*arguments)
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        exported[0].export_task("sketch", copied)
    assert content(tmp_path) == before


@pytest.mark.usefixtures("traced", "copied")
@pytest.mark.parametrize("name", ["served", "new"])
def test_a_full_disk_ends_an_export_in_one_sentence(exported, tmp_path, name):
    before = content(tmp_path)
    with no_file_larger_than(10_000), pytest.raises(OSError, match=rf"the export to .*/{name} could not be written"):
        exported[0].export_task("sketch", tmp_path / name)
    assert content(tmp_path) == before


def test_other_files_are_never_touched(exported, tmp_path):
    model, _ = exported
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"`directory` '.*thesis' holds something else than an earlier export"):
        model.export_task("photo", tmp_path / "thesis")
    with pytest.raises(NotADirectoryError, match=r"`directory` '.*chapter\.txt' is a file"):
        model.export_task("photo", tmp_path / "thesis" / "chapter.txt")
    assert content(tmp_path) == {"thesis/chapter.txt": b"mine"}


def test_bad_arguments_are_named(exported, tmp_path):
    model, _ = exported
    with pytest.raises(ValueError, match=r"`task` 'sketsh' is not one of .*Did you mean 'sketch'\?"):
        model.export_task("sketsh", tmp_path / "new")
    with pytest.raises(ValueError, match=r"`dtype` is torch\.float16: give one of torch\.float32, "):
        model.export_task("photo", tmp_path / "new", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
