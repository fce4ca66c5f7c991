"""`transformers.pipeline("zero-shot-image-classification")` on a loaded adapter, against `predict`."""

from __future__ import annotations

import adapted
import pytest
from peft import PeftModel

PADDING = {"longest": {}, "max_length": {"padding": "max_length", "max_length": 77}}

both = pytest.mark.parametrize("whole", [False, True], ids=["base model", "PeftModel"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapters of both tasks and of one alone."""
    directory = tmp_path_factory.mktemp("adapters")
    adapted.adapted_clip().save_pretrained(directory / "both")
    adapted.adapted_clip(tasks={"sketch": adapted.TASKS["sketch"]}).save_pretrained(directory / "sketch")
    return directory


def load(folder):
    return PeftModel.from_pretrained(adapted.clip(), folder)


@pytest.fixture
def model(folders):
    return load(folders / "both")


@pytest.fixture(scope="module")
def images():
    return adapted.pictures(5)


def classifier(model, whole=False):
    return adapted.classifier(model if whole or isinstance(model, str) else model.get_base_model())


def ask(pipe, images, task: str, **options):
    """What a user would write: the task's classes as labels and the adapter's template."""
    return pipe(images, candidate_labels=adapted.TASKS[task], hypothesis_template=adapted.TEMPLATE, **options)


def assert_equal(answers: list[list[dict]], predictions: list[dict[str, float]]) -> None:
    for got, wanted in zip(adapted.scores(answers), predictions, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5, rel=0)


# ---- the scores of `predict` ----------------------------------------------------------------------------------------


@both
def test_scores_are_those_of_predict_under_the_task_of_set_task(model, images, whole):
    pipe, found = classifier(model, whole), []
    for task in ("sketch", "painting", "sketch"):
        model.set_task(task)
        expected = model.predict(images, task)
        for batch_size in (2, 5):
            assert_equal(ask(pipe, images, task, batch_size=batch_size), expected)
        assert_equal([ask(pipe, images[0], task)], expected[:1])
        found.append(adapted.table(adapted.scores(ask(pipe, images, "painting")), "painting"))
    with model.disable_adapter():
        disabled = ask(pipe, images, "painting", batch_size=2)
    assert disabled == ask(adapted.classifier(adapted.clip()), images, "painting", batch_size=2)  # plain CLIP
    found[2] = adapted.table(adapted.scores(disabled), "painting")
    for first, second in ((0, 1), (0, 2), (1, 2)):  # else one could not tell which prompts the pipeline saw
        assert (found[first] - found[second]).abs().max() > 0.02


def test_the_pipeline_follows_set_adapter(model, images, folders):
    model.load_adapter(folders / "sketch", "other")
    model.set_task("sketch")
    pipe, found = classifier(model), []
    for name in ("other", "default"):
        model.set_adapter(name)
        found.append(model.predict(images))
        assert_equal(ask(pipe, images, "sketch"), found[-1])


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
def test_padding_up_to_the_whole_position_table(model, images, padding):
    """32 prompt tokens and 77 padded positions would not fit: what follows [EOS] is dropped."""
    model.set_task("painting")
    pipe, answers = classifier(model), []
    for image in images:
        inputs = pipe.preprocess(image, adapted.TASKS["painting"], adapted.TEMPLATE, tokenizer_kwargs=padding)
        assert (inputs["text_inputs"][0].input_ids.shape[1] == 77) == bool(padding)
        assert "attention_mask" in inputs["text_inputs"][0]
        answers.append(pipe.postprocess(pipe.forward(inputs)))
    assert_equal(answers, model.predict(images))


def test_one_task_needs_no_set_task(images, folders):
    model = load(folders / "sketch")
    expected = model.predict(images)
    assert_equal(ask(classifier(model), images, "sketch"), expected)
    # transformers finds the base model, and puts the adapter into it
    assert_equal(ask(classifier(str(folders / "sketch")), images, "sketch"), expected)


# ---- what a user is told --------------------------------------------------------------------------------------------


@both
def test_what_is_missing_or_too_long_is_a_clear_error(model, images, whole):
    pipe = classifier(model, whole)
    with pytest.raises(ValueError, match=r"no task is set: .*`set_task\(name\)` with one of \['painting', 'sketch'\]"):
        ask(pipe, images, "painting")
    model.set_task("sketch")
    with pytest.raises(ValueError, match=r"needs \d+ positions, but the base model has 77: shorten the text"):
        pipe(images[0], candidate_labels=["house", "very " * 60 + "big house"])
