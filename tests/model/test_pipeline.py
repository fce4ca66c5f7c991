"""`transformers.pipeline("zero-shot-image-classification")` on a loaded adapter, against `predict`."""

from __future__ import annotations

import adapted
import pytest
import torch
from paths import TINY_CLIP
from peft import PeftModel
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, pipeline
from transformers.pipelines import ZeroShotImageClassificationPipeline
from transformers.pipelines import base as pipelines_base

TASK = "zero-shot-image-classification"
PADDING = {"longest": {}, "max_length": {"padding": "max_length", "max_length": 77}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter")
    adapted.adapted_clip().save_pretrained(directory)
    return directory


@pytest.fixture
def model(folder):
    return PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), folder)


@pytest.fixture(scope="module")
def images():
    return adapted.pictures(5)


def classifier(model, **options) -> ZeroShotImageClassificationPipeline:
    tokenizer, processor = AutoTokenizer.from_pretrained(TINY_CLIP), AutoImageProcessor.from_pretrained(TINY_CLIP)
    return pipeline(TASK, model=model, tokenizer=tokenizer, image_processor=processor, **options)


def ask(pipe, images, task: str, **options):
    """What a user would write: the task's classes as labels and the adapter's template."""
    labels = adapted.TASKS[task]
    return pipe(images, candidate_labels=labels, hypothesis_template=adapted.TEMPLATE, **options)


def scores(answers: list[list[dict]]) -> list[dict[str, float]]:
    return [{each["label"]: each["score"] for each in answer} for answer in answers]


def assert_equal(answers: list[list[dict]], predictions: list[dict[str, float]]) -> None:
    assert len(answers) == len(predictions)
    for got, wanted in zip(scores(answers), predictions, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5, rel=0)


# ---- the scores of `predict` ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["base model", "PeftModel"])
@pytest.mark.parametrize("task", adapted.TASKS)
def test_scores_are_those_of_predict(model, images, task, whole):
    model.set_task(task)
    pipe = classifier(model if whole else model.get_base_model())
    expected = model.predict(images, task)
    for batch_size in (1, 2, 5):
        assert_equal(ask(pipe, images, task, batch_size=batch_size), expected)
    assert_equal([ask(pipe, images[0], task)], expected[:1])


def test_the_adapter_and_the_task_matter(model, images):
    """Else the tests here could not tell which prompts the pipeline saw."""
    pipe, found = classifier(model.get_base_model()), []
    for task in adapted.TASKS:
        model.set_task(task)
        found.append(adapted.table(scores(ask(pipe, images, "painting")), "painting"))
    with model.disable_adapter():
        found.append(adapted.table(scores(ask(pipe, images, "painting")), "painting"))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (found[first] - found[second]).abs().max() > 0.02


def test_the_pipeline_follows_set_task(model, images):
    pipe = classifier(model.get_base_model())
    for task in ("sketch", "painting", "sketch"):
        model.set_task(task)
        assert_equal(ask(pipe, images, task), model.predict(images, task))


def test_the_pipeline_follows_set_adapter(model, images, tmp_path):
    adapted.adapted_clip(tasks={"sketch": adapted.TASKS["sketch"]}).save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "other")
    model.set_task("sketch")
    pipe, found = classifier(model.get_base_model()), []
    for name in ("other", "default"):
        model.set_adapter(name)
        found.append(model.predict(images))
        assert_equal(ask(pipe, images, "sketch"), found[-1])
    first, second = (adapted.table(each, "sketch") for each in found)
    assert (first - second).abs().max() > 1e-3


def test_a_choice_among_some_of_the_classes(model, images):
    model.set_task("painting")
    some = adapted.TASKS["painting"][1:4]
    answers = classifier(model.get_base_model())(
        images, candidate_labels=some, hypothesis_template=adapted.TEMPLATE, batch_size=2
    )
    predictions = [{name: each[name] for name in some} for each in model.predict(images)]
    assert_equal(answers, [{name: p / sum(each.values()) for name, p in each.items()} for each in predictions])


def test_files_and_generators(model, images, tmp_path):
    model.set_task("sketch")
    pipe = classifier(model.get_base_model())
    paths = [str(tmp_path / f"{index}.png") for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    expected = model.predict(paths)
    assert_equal(ask(pipe, paths, "sketch", batch_size=2), expected)
    assert_equal(list(ask(pipe, (path for path in paths), "sketch", batch_size=2)), expected)


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
def test_padding_up_to_the_whole_position_table(model, images, padding):
    """32 prompt tokens and 77 padded positions would not fit: what follows [EOS] is dropped."""
    model.set_task("painting")
    pipe = classifier(model.get_base_model())
    answers = []
    for image in images:
        inputs = pipe.preprocess(image, adapted.TASKS["painting"], adapted.TEMPLATE, tokenizer_kwargs=padding)
        assert (inputs["text_inputs"][0].input_ids.shape[1] == 77) == bool(padding)
        assert "attention_mask" in inputs["text_inputs"][0]
        answers.append(pipe.postprocess(pipe.forward(inputs)))
    assert_equal(answers, model.predict(images))


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), -1, None])
def test_devices(model, images, device):
    model.set_task("sketch")
    pipe = classifier(model.get_base_model(), device=device)
    expected = model.predict(images)
    assert pipe.device == model.get_base_model().device
    assert_equal(ask(pipe, images, "sketch"), expected)


# ---- without the adapter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["base model", "PeftModel"])
def test_disabled_it_is_plain_clip(model, images, whole):
    pipe, plain = classifier(model if whole else model.get_base_model()), classifier(str(TINY_CLIP))
    model.set_task("painting")
    with model.disable_adapter():
        answers = ask(pipe, images, "painting", batch_size=2)
    assert answers == ask(plain, images, "painting", batch_size=2)
    assert_equal(ask(pipe, images, "painting"), model.predict(images))


# ---- bfloat16 -------------------------------------------------------------------------------------------------------


def assert_close(answers: list[list[dict]], predictions: list[dict[str, float]], model: PeftModel) -> None:
    """Within twice the tolerance of `predict`: the pipeline's cosines, logits and softmax are bfloat16 too."""
    got, wanted = (adapted.cosines(each, "painting", model) for each in (scores(answers), predictions))
    assert 0 < (got - wanted).abs().max() <= 2 * adapted.BF16_COSINE


def test_a_base_in_bf16(folder, model, images):
    half = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.bfloat16), folder)
    half.set_task("painting")
    pipe = classifier(half.get_base_model())
    assert pipe.dtype == torch.bfloat16
    assert_close(ask(pipe, images, "painting", batch_size=2), model.predict(images, "painting"), model)


def test_in_the_callers_autocast(model, images):
    model.set_task("painting")
    pipe = classifier(model.get_base_model())
    with torch.autocast("cpu", torch.bfloat16):
        answers = ask(pipe, images, "painting", batch_size=2)
    assert_close(answers, model.predict(images), model)


# ---- what a user is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["base model", "PeftModel"])
def test_no_task_is_a_clear_error(model, images, whole):
    pipe = classifier(model if whole else model.get_base_model())
    with pytest.raises(ValueError, match=r"no task is set: .*`set_task\(name\)` with one of \['painting', 'sketch'\]"):
        ask(pipe, images, "painting")


def test_one_task_needs_no_set_task(images, tmp_path):
    adapted.adapted_clip(tasks={"sketch": adapted.TASKS["sketch"]}).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), tmp_path)
    expected = model.predict(images)
    assert_equal(ask(classifier(model.get_base_model()), images, "sketch"), expected)
    # transformers finds the base model, and puts the adapter into it
    assert_equal(ask(classifier(str(tmp_path)), images, "sketch"), expected)


def test_a_label_too_long_for_the_prompts(model, images):
    model.set_task("sketch")
    pipe = classifier(model.get_base_model())
    with pytest.raises(ValueError, match=r"needs \d+ positions, but the base model has 77: shorten the text"):
        pipe(images[0], candidate_labels=["house", "very " * 60 + "big house"])


def test_the_base_model_is_on_the_pipelines_list(model, monkeypatch):
    """A `PeftModel` is not: it works as well, but transformers logs that it is unsupported."""
    said: list[str] = []  # not by caplog: what reaches it of transformers' messages depends on the variable `CI`
    monkeypatch.setattr(pipelines_base.logger, "error", said.append)
    classifier(model.get_base_model())
    assert not said
    classifier(model)
    assert [message.partition(" for ")[0] for message in said] == [
        f"The model '{type(model).__name__}' is not supported"
    ]
