"""`predict` against one picture at a time through transformers' processor; what it reads, computes and refuses."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import adapted
import numpy as np
import pytest
import torch
from paths import TINY_CLIP
from PIL import Image, ImageSequence
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoImageProcessor
from transformers.activations import ACT2FN

from jscpt_peft.model.backbones.attention import feed_forward


@pytest.fixture
def model():
    return adapted.adapted_clip()


@pytest.fixture(scope="module")
def images():
    return adapted.pictures(7)


def one_by_one(model, images: list[Image.Image], task: str) -> torch.Tensor:
    """The oracle: transformers' processor and `classify`, a picture at a time."""
    processor = AutoImageProcessor.from_pretrained(TINY_CLIP)
    rows = []
    for image in images:
        pixels = processor(images=image, return_tensors="pt").pixel_values
        with torch.no_grad():
            logits = model.classify(pixels, model.task_names.index(task)).logits[0, : len(adapted.TASKS[task])]
        rows.append(logits.softmax(dim=-1).double())
    return torch.stack(rows)


def assert_close(predictions, expected: torch.Tensor, task: str = "painting") -> None:
    torch.testing.assert_close(adapted.table(predictions, task), expected, atol=1e-5, rtol=0)


def counted(monkeypatch, tower) -> list[int]:
    """Fills the list that it returns with the rows of every pass through the tower."""
    passes, pooled = [], tower.pooled

    def counting(*arguments):
        output = pooled(*arguments)
        passes.append(len(output))
        return output

    monkeypatch.setattr(tower, "pooled", counting)
    return passes


# ---- what it gives and takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", adapted.TASKS)
def test_batches_equal_one_by_one(model, images, task):
    expected = one_by_one(model, images, task)
    assert min((a - b).abs().max() for i, a in enumerate(expected) for b in expected[:i]) > 1e-3  # in which order?
    for batch_size in (1, 3, 64):
        predictions = model.predict(images, task, batch_size=batch_size)
        assert_close(predictions, expected, task)
        for prediction in predictions:
            assert list(prediction.values()) == sorted(prediction.values(), reverse=True)
            assert sum(prediction.values()) == pytest.approx(1, abs=1e-6)
    model.set_task(task)
    assert model.predict(images, batch_size=64) == predictions
    other = next(name for name in adapted.TASKS if name != task)
    assert set(model.predict(images[0], other)[0]) == set(adapted.TASKS[other])


def test_without_the_adapter_it_is_the_base_models_prediction(model, images):
    with model.disable_adapter():
        plain = model.predict(images, "painting")
        assert_close(plain, one_by_one(model, images, "painting"))
    difference = adapted.table(plain, "painting") - adapted.table(model.predict(images, "painting"), "painting")
    assert difference.abs().max() > 0.1


def test_paths_pictures_and_any_iterable(model, images, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    expected = model.predict(images, "sketch")
    opened = (Image.open(path) for path in paths)
    for given in (paths, [str(path) for path in paths], opened, [*images[:3], *paths[3:]]):
        assert model.predict(given, "sketch") == expected
    for one in (images[0], paths[0], str(paths[0])):
        assert model.predict(one, "sketch")[0] == pytest.approx(expected[0], abs=1e-5)
    assert model.predict([], "sketch") == model.predict(iter(()), "sketch") == []


def test_an_iterator_that_hands_out_the_same_picture_again(model, images, tmp_path):
    frames = [image.resize((64, 64)).quantize() for image in images]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "frames.gif") as film:
        expected = one_by_one(model, [frame.convert("RGB") for frame in ImageSequence.Iterator(film)], "painting")
        assert_close(model.predict(ImageSequence.Iterator(film), "painting", batch_size=4), expected)


# ---- what it costs and leaves ---------------------------------------------------------------------------------------


def test_one_vision_pass_a_batch_and_class_features_once(model, images, monkeypatch):
    vision, text = counted(monkeypatch, model.backbone.vision), counted(monkeypatch, model.backbone.text)
    classes = sum(map(len, adapted.TASKS.values()))
    model.predict(images, "sketch", batch_size=3)
    assert vision == [3, 3, 1]
    model.predict(images, "painting", batch_size=3)
    assert sum(text) == classes  # kept for the next call, and for the other tasks
    model.predict(images, "painting", batch_size=3, bf16=True)
    assert sum(text) == 2 * classes


def test_images_are_read_batch_by_batch(model, images, monkeypatch):
    vision, ahead = counted(monkeypatch, model.backbone.vision), []

    def stream():
        for number in range(40):
            ahead.append(number + 1 - sum(vision))
            yield images[number % len(images)]

    assert len(model.predict(stream(), "sketch", batch_size=4)) == 40
    assert max(ahead) == 8  # the batch under way, and the next


@pytest.mark.parametrize("modes", [(True, True), (False, False), (True, False)])
def test_the_model_stays_as_it_is(model, images, modes):
    """A frozen base may be in evaluation mode inside a model that trains; `predict` drops nothing out in any mode."""
    expected = model.predict(images, "sketch")
    for layer in [*model.backbone.vision.blocks, *model.backbone.text.blocks]:
        layer.self_attn.dropout = 0.5
    model.train(modes[0])
    model.get_base_model().text_model.train(modes[1])
    before = [module.training for module in model.modules()]
    assert model.predict(images, "sketch") == expected
    with pytest.raises(ValueError, match="cannot be read"):
        model.predict("missing.png", "sketch", bf16=True)
    assert [module.training for module in model.modules()] == before


# ---- bfloat16 -------------------------------------------------------------------------------------------------------

HALF = torch.bfloat16
WAYS = {
    "on request": (adapted.adapted_clip, nullcontext(), {"bf16": True}),
    "in the caller's autocast": (adapted.adapted_clip, torch.autocast("cpu", HALF), {}),
    "base in bf16": (lambda: adapted.adapted_clip(HALF), nullcontext(), {}),  # PEFT keeps adapters in float32
    "base in bf16, on request": (lambda: adapted.adapted_clip(HALF), nullcontext(), {"bf16": True}),
    "base and adapter in bf16": (lambda: adapted.adapted_clip().to(HALF), nullcontext(), {}),
}


class WeightCasts(TorchDispatchMode):
    """Names the parameters of a model that are cast within."""

    def __init__(self, model) -> None:
        super().__init__()
        self.names = {each.data_ptr(): name.rsplit(".", 2)[-2] for name, each in model.named_parameters()}
        self.cast = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].dim() > 0:
            self.cast += [self.names[at] for at in (args[0].untyped_storage().data_ptr(),) if at in self.names]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_weights_of_blocks_are_cast_once(activation):
    """Also without gradients, and whatever the activation is."""
    model = adapted.adapted_clip()
    mlps = [layer.mlp for tower in (model.backbone.vision, model.backbone.text) for layer in tower.blocks]
    for mlp in mlps:
        mlp.activation_fn = ACT2FN[activation]
    images = adapted.pictures(2)
    before = model.predict(images, "painting", bf16=True)
    with WeightCasts(model) as casts:
        assert model.predict(images, "painting", bf16=True) == before
    assert casts.cast == ["patch_embedding", "base_layer"]  # the latter projects what an image's features become
    hidden = torch.randn(2, 3, mlps[0].fc1.in_features)
    if activation == "gelu":
        with torch.no_grad(), torch.autocast("cpu", HALF):
            assert torch.equal(feed_forward(mlps[0], hidden, model.backbone.vision.cast_blocks()[0]), mlps[0](hidden))


@pytest.fixture(scope="module")
def exact():
    """Images, the float32 model, and its cosines."""
    images, model = adapted.pictures(24), adapted.adapted_clip()
    wanted = adapted.cosines(model.predict(images, "painting"), "painting", model)
    with model.disable_adapter():  # the tolerance tells an adapter from none
        plain = adapted.cosines(model.predict(images, "painting"), "painting", model)
    assert (plain - wanted).abs().max() > 20 * adapted.BF16_COSINE
    return images, model, wanted


@pytest.mark.parametrize("way", WAYS)
def test_bf16_agrees_with_float32(way, exact):
    make, context, options = WAYS[way]
    (images, float32, wanted), model, dtypes = exact, make(), set()
    for tower in (model.backbone.vision, model.backbone.text):
        tower.blocks[-1].self_attn.out_proj.register_forward_hook(lambda *each: dtypes.add(each[-1].dtype))
    with context:
        predictions = model.predict(images, "painting", batch_size=5, **options)
    assert dtypes == {HALF}
    got = adapted.cosines(predictions, "painting", float32)
    assert 0 < (got - wanted).abs().max() <= adapted.BF16_COSINE
    sums = adapted.table(predictions, "painting").sum(dim=1)
    assert (sums - 1).abs().max() <= 1e-6  # bfloat16 would miss 1 by 1e-3
    best_two = wanted.topk(2, dim=1)
    clear = best_two.values[:, 0] - best_two.values[:, 1] > 2 * adapted.BF16_COSINE
    assert clear.sum() >= 12 and (got.argmax(dim=1) == best_two.indices[:, 0])[clear].all()


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 2.5}, "`batch_size` must be a whole number, got 2.5"),
        ({"task": "skech"}, r"`task` 'skech'.*Did you mean 'sketch'\?"),
        ({"task": None}, r"no task is set: .*for `predict`, `task=`.*'painting', 'sketch'"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(model, images, options, message):
    unread = iter(images)
    with pytest.raises(ValueError, match=message):
        model.predict(unread, **{"task": "sketch", **options})
    assert next(unread) is images[0]


@pytest.fixture
def files(images, tmp_path):
    images[0].save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.png").write_text("not a picture")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda _: Path("nowhere/cat.png"), r"\('nowhere/cat.png'\) cannot be read: .*No such file"),
        (lambda files: files / "half.jpg", r"\('.*half.jpg'\) cannot be read: .*truncated"),
        (lambda files: Image.open(files / "half.jpg"), r"\('.*JpegImageFile.*'\) cannot be read: .*truncated"),
        (lambda files: files / "notes.png", r"\('.*notes.png'\) cannot be read: cannot identify"),
        (lambda _: Image.new("RGB", (0, 9)), ".*size=0x9.* cannot be read"),
        (lambda _: torch.zeros(3, 64, 64), "is a Tensor: give PIL images or paths of files"),
        (lambda _: np.zeros((64, 64, 3)), "is a ndarray: give PIL images"),
        (lambda _: None, "is a NoneType: give PIL images"),
    ],
)
def test_what_is_no_picture_is_named(model, images, files, given, message):
    with pytest.raises((TypeError, ValueError), match=rf"`images\[2\]` {message}"):
        model.predict([*images[:2], given(files)], "sketch", batch_size=2)


# ---- classes that a task was not trained with -----------------------------------------------------------------------

ENSEMBLES = {"painting": "a painting of a {}.", "sketch": ["a sketch of a {}.", "one {}."]}
UNSEEN = ["lightning bolt", "a ladder with many rungs", "sun"]


@pytest.mark.parametrize("template", [adapted.TEMPLATE, ENSEMBLES], ids=["one", "ensembles"])
@pytest.mark.parametrize("bf16", [False, True])
def test_any_classes_are_those_of_a_task_that_has_them(images, template, bf16):
    model = adapted.adapted_clip(class_template=template)
    other = adapted.adapted_clip(tasks={**adapted.TASKS, "sketch": UNSEEN}, class_template=template)
    other.load_state_dict(model.state_dict())
    given = model.predict(images, task="sketch", classes=UNSEEN, bf16=bf16)
    expected = other.predict(images, task="sketch", bf16=bf16)
    for one, another in zip(given, expected, strict=True):
        assert one == pytest.approx(another, rel=0.05 if bf16 else 1e-4)
    assert model.task_names == list(adapted.TASKS)
    assert given != model.predict(images, task="painting", classes=UNSEEN, bf16=bf16)


def test_without_the_adapter_any_classes_are_zero_shot(model, images):
    with model.disable_adapter():
        given = model.predict(images, task="sketch", classes=UNSEEN)
        assert given == model.predict(images, task="painting", classes=UNSEEN)
    assert given != model.predict(images, task="sketch", classes=UNSEEN)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("sun", "`classes` is 'sun': give a list"),
        ([], "`classes` has no class names"),
        (["sun", "sun"], r"`classes` names \['sun'\] more than once"),
        (["sun", 80 * "sun "], "'sun sun.* of task 'sketch' is too long"),
    ],
)
def test_what_cannot_be_classes(model, images, classes, message):
    with pytest.raises(ValueError, match=message):
        model.predict(images, task="sketch", classes=classes)
