"""`predict` against one picture at a time through transformers' processor; what it reads, computes and refuses."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter

import adapted
import numpy as np
import pytest
import torch
from paths import TINY_CLIP
from peft import PeftModel
from PIL import Image, ImageSequence
from transformers import AutoImageProcessor

from jscpt_peft.data import to_rgb


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


def counted(monkeypatch, tower) -> list[int]:
    """Fills the list that it returns with the rows of every pass through the tower."""
    passes, pooled = [], tower.pooled

    def counting(*arguments):
        output = pooled(*arguments)
        passes.append(len(output))
        return output

    monkeypatch.setattr(tower, "pooled", counting)
    return passes


# ---- what it gives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", adapted.TASKS)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_batches_equal_one_by_one(model, images, task, batch_size):
    predictions = model.predict(images, task, batch_size=batch_size)
    torch.testing.assert_close(adapted.table(predictions, task), one_by_one(model, images, task), atol=1e-5, rtol=0)
    for prediction in predictions:
        assert list(prediction.values()) == sorted(prediction.values(), reverse=True)
        assert sum(prediction.values()) == pytest.approx(1, abs=1e-6)


def test_the_pictures_differ(model, images):
    """Else the test above could not tell their order."""
    rows = one_by_one(model, images, "painting")
    assert min(float((a - b).abs().max()) for i, a in enumerate(rows) for b in rows[:i]) > 1e-3


def test_the_task_of_set_task_unless_one_is_named(model, images):
    model.set_task("sketch")
    assert model.predict(images) == model.predict(images, "sketch")
    assert set(model.predict(images[0], "painting")[0]) == set(adapted.TASKS["painting"])


def test_without_the_adapter_it_is_the_base_models_prediction(model, images):
    with model.disable_adapter():
        plain = adapted.table(model.predict(images, "painting"), "painting")
        torch.testing.assert_close(plain, one_by_one(model, images, "painting"), atol=1e-5, rtol=0)
    assert (plain - adapted.table(model.predict(images, "painting"), "painting")).abs().max() > 0.1


def test_no_images(model):
    assert model.predict([], "sketch") == []
    assert model.predict(iter(()), "sketch") == []


# ---- what it takes --------------------------------------------------------------------------------------------------


def test_paths_pictures_and_any_iterable(model, images, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    expected = model.predict(images, "sketch")
    assert model.predict(paths, "sketch") == expected
    assert model.predict([str(path) for path in paths], "sketch") == expected
    assert model.predict((Image.open(path) for path in paths), "sketch") == expected
    assert model.predict([*images[:3], *paths[3:]], "sketch") == expected
    for one in (images[0], paths[0], str(paths[0])):
        assert model.predict(one, "sketch")[0] == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode(model, images, mode, tmp_path):
    grey = images[1].convert("L")
    levels = np.asarray(grey)
    converted = {
        "I;16": lambda: Image.fromarray(levels.astype(np.uint16) * 257),
        "F": lambda: Image.fromarray(levels.astype(np.float32)),
    }
    image = converted.get(mode, lambda: images[1].convert(mode))()
    if mode in ("LA", "RGBA"):
        image.putalpha(grey)
    assert image.mode == mode
    image.save(tmp_path / "picture.tiff")
    expected = one_by_one(model, [to_rgb(image)], "painting")
    for given in (image, tmp_path / "picture.tiff"):
        torch.testing.assert_close(
            adapted.table(model.predict(given, "painting"), "painting"), expected, atol=1e-5, rtol=0
        )


def test_an_iterator_that_hands_out_the_same_picture_again(model, images, tmp_path):
    frames = [image.resize((64, 64)).quantize() for image in images]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "frames.gif") as film:
        apart = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
    with Image.open(tmp_path / "frames.gif") as film:
        predictions = model.predict(ImageSequence.Iterator(film), "painting", batch_size=4)
    torch.testing.assert_close(
        adapted.table(predictions, "painting"), one_by_one(model, apart, "painting"), atol=1e-5, rtol=0
    )


# ---- what it costs --------------------------------------------------------------------------------------------------


def test_one_vision_pass_a_batch_and_class_features_once(model, images, monkeypatch):
    vision, text = counted(monkeypatch, model.backbone.vision), counted(monkeypatch, model.backbone.text)
    model.predict(images, "sketch", batch_size=3)
    assert vision == [3, 3, 1]
    classes = sum(map(len, adapted.TASKS.values()))
    assert sum(text) == classes
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


def test_the_model_stays_as_it_is(model, images):
    expected = model.predict(images, "sketch")
    for layer in [*model.backbone.vision.blocks, *model.backbone.text.blocks]:
        layer.self_attn.dropout = 0.5
    for training in (True, False):
        model.train(training)
        model.predict(images, "sketch", bf16=True)
        assert model.predict(images, "sketch") == expected
        with pytest.raises(ValueError, match="cannot be read"):
            model.predict("missing.png", "sketch")
        assert {module.training for module in model.modules()} == {training}


def test_modules_keep_modes_of_their_own(images):
    """A frozen base may be in evaluation mode inside a model that trains."""
    model = adapted.adapted_clip().train()
    model.get_base_model().text_model.eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    model.predict(images, "sketch")
    assert [module.training for module in model.modules()] == before


# ---- bfloat16 -------------------------------------------------------------------------------------------------------


def in_bf16() -> PeftModel:
    return adapted.adapted_clip().to(torch.bfloat16)


def on_a_bf16_base() -> PeftModel:
    model = adapted.adapted_clip(torch.bfloat16)
    assert model.prompt_tokens("vision").dtype == torch.float32  # PEFT keeps adapters in float32
    return model


@pytest.mark.parametrize(
    ("make", "context", "options"),
    [
        pytest.param(adapted.adapted_clip, nullcontext(), {"bf16": True}, id="on request"),
        pytest.param(adapted.adapted_clip, torch.autocast("cpu", torch.bfloat16), {}, id="in the caller's autocast"),
        pytest.param(on_a_bf16_base, nullcontext(), {}, id="base in bf16"),
        pytest.param(on_a_bf16_base, nullcontext(), {"bf16": True}, id="base in bf16, on request"),
        pytest.param(in_bf16, nullcontext(), {}, id="base and adapter in bf16"),
    ],
)
def test_bf16_agrees_with_float32(make, context, options):
    images, exact, model, dtypes = adapted.pictures(24), adapted.adapted_clip(), make(), set()
    for tower in (model.backbone.vision, model.backbone.text):
        attention = tower.blocks[-1].self_attn
        attention.out_proj.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    expected = exact.predict(images, "painting")
    with context:
        predictions = model.predict(images, "painting", batch_size=5, **options)
    assert dtypes == {torch.bfloat16}
    wanted, got = adapted.cosines(expected, "painting", exact), adapted.cosines(predictions, "painting", model)
    assert 0 < (got - wanted).abs().max() <= adapted.BF16_COSINE
    assert (
        adapted.table(predictions, "painting").sum(dim=1).sub(1).abs().max() <= 1e-6
    )  # bfloat16 would miss 1 by 1e-3
    best_two = wanted.topk(2, dim=1)
    clear = best_two.values[:, 0] - best_two.values[:, 1] > 2 * adapted.BF16_COSINE
    assert clear.sum() >= 12
    assert (got.argmax(dim=1) == best_two.indices[:, 0])[clear].all()


def test_the_tolerance_of_bf16_tells_an_adapter_from_none():
    images, model = adapted.pictures(24), adapted.adapted_clip()
    expected = adapted.cosines(model.predict(images, "painting"), "painting", model)
    with model.disable_adapter():
        plain = adapted.cosines(model.predict(images, "painting"), "painting", model)
    assert (plain - expected).abs().max() > 20 * adapted.BF16_COSINE


# ---- bad input ------------------------------------------------------------------------------------------------------


class TestBadInput:
    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size(self, model, images, batch_size):
        unread = iter(images)
        with pytest.raises(ValueError, match=f"`batch_size` is {batch_size}: .*at least 1"):
            model.predict(unread, "sketch", batch_size=batch_size)
        assert next(unread) is images[0]

    def test_unknown_task(self, model, images):
        unread = iter(images)
        with pytest.raises(ValueError, match=r"`task` 'skech'.*Did you mean 'sketch'\?"):
            model.predict(unread, "skech")
        assert next(unread) is images[0]

    def test_no_task(self, model, images):
        with pytest.raises(ValueError, match=r"no task is set: .*for `predict`, `task=`.*'painting', 'sketch'"):
            model.predict(images)

    def test_missing_file(self, model, images):
        with pytest.raises(ValueError, match=r"`images\[2\]` \('nowhere/cat.png'\) cannot be read: .*No such file"):
            model.predict([*images[:2], Path("nowhere/cat.png")], "sketch", batch_size=2)

    @pytest.mark.parametrize("opened", [True, False])
    def test_truncated_file(self, model, images, tmp_path, opened):
        images[0].save(tmp_path / "whole.jpg")
        whole = (tmp_path / "whole.jpg").read_bytes()
        (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
        given = Image.open(tmp_path / "half.jpg") if opened else tmp_path / "half.jpg"
        name = "JpegImageFile" if opened else "half.jpg"
        with pytest.raises(ValueError, match=rf"`images\[1\]` \('.*{name}.*'\) cannot be read: .*truncated"):
            model.predict([images[0], given], "sketch")

    def test_a_file_that_is_no_picture(self, model, tmp_path):
        (tmp_path / "notes.png").write_text("not a picture")
        with pytest.raises(ValueError, match=r"`images\[0\]` \('.*notes.png'\) cannot be read: cannot identify"):
            model.predict(tmp_path / "notes.png", "sketch")

    def test_a_picture_without_pixels(self, model):
        with pytest.raises(ValueError, match=r"`images\[0\]` .*size=0x9.* cannot be read"):
            model.predict(Image.new("RGB", (0, 9)), "sketch")

    @pytest.mark.parametrize(
        ("given", "kind"),
        [
            (torch.zeros(2, 3, 64, 64), "Tensor"),
            ([torch.zeros(3, 64, 64)], "Tensor"),
            (np.zeros((64, 64, 3)), "ndarray"),
            (None, "NoneType"),
        ],
    )
    def test_no_pictures(self, model, given, kind):
        with pytest.raises(TypeError, match=rf"`images\[0\]` is a {kind}: give PIL images or paths of files"):
            model.predict(given, "sketch")


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_size(tmp_path):
    """24 files under a random ViT-B/32 with 4 tasks x 65 classes: agreement, and (with `-s`) the times."""
    import benchmark

    model = benchmark.random_model(benchmark.BenchmarkArguments(model="vit_b32"))
    paths = [tmp_path / f"{index}.jpg" for index in range(24)]
    for path, image in zip(paths, adapted.pictures(24), strict=True):
        image.resize((500, 375)).save(path)
    ways = {
        "one by one": lambda: [model.predict(path, "task 1")[0] for path in paths],
        "batched": lambda: model.predict(paths, "task 1"),
        "batched, bf16": lambda: model.predict(paths, "task 1", bf16=True),
    }
    seconds, results = {name: [] for name in ways}, {}
    for _ in range(3):
        for name, way in ways.items():
            model.predict(paths[0], "task 1", bf16="bf16" in name)  # class features are kept
            start = perf_counter()
            results[name] = way()
            seconds[name].append(perf_counter() - start)
    names = model.active_jscpt_config.tasks["task 1"]
    rows = {way: torch.tensor([[each[name] for name in names] for each in found]) for way, found in results.items()}
    assert (rows["batched"] - rows["one by one"]).abs().max() <= 1e-5
    logits = {way: found.log() - found.log().mean(dim=1, keepdim=True) for way, found in rows.items()}
    scale = model.get_base_model().logit_scale.exp()
    assert ((logits["batched, bf16"] - logits["batched"]) / scale).abs().max() <= adapted.BF16_COSINE
    alone, batched, bf16 = (median(each) for each in seconds.values())
    print(f"\n{torch.get_num_threads()} threads: one by one {alone:.2f} s, batched {batched:.2f} s, bf16 {bf16:.2f} s")
    print(f"one by one / batched {alone / batched:.2f}, float32 / bf16 {batched / bf16:.2f}")


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
