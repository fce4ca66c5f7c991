"""`class_template`: one for all tasks, one per task, or several whose class features are averaged."""

from __future__ import annotations

import adapted
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional as F
from torch.testing import assert_close

from jscpt_peft import JSCPTConfig

SEVERAL = ["a drawing of a {}.", "{}.", "a bad picture of the {}"]
TEMPLATES = {"painting": SEVERAL, "sketch": "a sketch of a {}."}
COUNTS = {task: len(names) for task, names in adapted.TASKS.items()}


@pytest.fixture
def model():
    options = {"num_shared_tokens": 2, "num_task_tokens": 2, "prompt_init_std": 0.05, "intervention": "none"}
    return get_peft_model(adapted.clip(), JSCPTConfig(tasks=adapted.TASKS, class_template=TEMPLATES, **options))


def expected_embeds(model, task, names, templates):
    return adapted.of_templates(model, [[each.format(name) for name in names] for each in templates], task_ids=task)


@pytest.mark.parametrize("learning", [False, True])
def test_class_features_are_the_mean_over_the_templates(model, learning):
    pixels = torch.randn(2, 3, 64, 64)
    for task, (name, names) in enumerate(adapted.TASKS.items()):
        expected = expected_embeds(model, task, names, [TEMPLATES[name]] if task else SEVERAL)
        with torch.set_grad_enabled(learning):
            output = model.classify(pixels, task, torch.tensor([0, 1]) if learning else None)
        assert_close(output.class_embeds[task, : COUNTS[name]], expected, atol=1e-5, rtol=1e-5)
        assert output.class_embeds.requires_grad == learning
        cosines = F.normalize(output.selected_embeds, dim=-1) @ F.normalize(expected, dim=-1).T
        assert_close(output.logits[:, : COUNTS[name]], cosines * model.get_base_model().logit_scale.exp(),
                     atol=1e-3, rtol=1e-4)  # fmt: skip
    with torch.no_grad():
        first = expected_embeds(model, 0, adapted.TASKS["painting"], SEVERAL[:1])
        assert (F.normalize(first, dim=-1) - model.class_embeds()[0]).abs().max() > 1e-2  # the others count too


def test_they_are_saved_loaded_and_grow(model, tmp_path):
    images = adapted.pictures(3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(adapted.clip(), tmp_path)
    assert loaded.active_jscpt_config.class_template == TEMPLATES
    assert loaded.predict(images, "painting") == model.predict(images, "painting")
    with pytest.raises(ValueError, match="`class_template` is missing: the adapter has a template per task"):
        loaded.add_task("icons", ["key", "bell"])
    loaded.add_task("icons", ["key", "bell"], class_template=SEVERAL[1:])
    with torch.no_grad():
        expected = expected_embeds(loaded, 2, ["key", "bell"], SEVERAL[1:])
        assert_close(loaded.class_embeds()[2, :2], expected, atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(adapted.clip(), tmp_path)
    for task in again.task_names:
        assert again.predict(images, task) == loaded.predict(images, task)


def test_a_task_with_a_template_of_its_own_beside_one_for_all():
    model = adapted.adapted_clip()
    before = model.predict(adapted.pictures(2), "sketch")
    model.add_task("icons", ["key", "bell"], class_template="an icon of a {}.")
    config = model.active_jscpt_config
    assert {task: config.templates(task) for task in config.tasks} == {
        **{task: [adapted.TEMPLATE] for task in adapted.TASKS},
        "icons": ["an icon of a {}."],
    }
    assert model.predict(adapted.pictures(2), "sketch") == before


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"painting": SEVERAL}, r"`class_template` is for the tasks \['painting'\]: give a template for each"),
        ({**TEMPLATES, "icons": "{}"}, r"`class_template` is for the tasks \['icons', 'painting', 'sketch'\]"),
        ({**TEMPLATES, "sketch": []}, "`class_template` must contain {}"),
        ({**TEMPLATES, "sketch": ["{}", "a sketch"]}, "`class_template` must contain {}"),
    ],
)
def test_bad_templates(template, message):
    with pytest.raises(ValueError, match=message):
        JSCPTConfig(tasks=adapted.TASKS, class_template=template)


def test_every_class_has_equally_many_texts():
    ids = {"painting": [[[97, 5, 98], [97, 6, 98]], [[97, 7, 98]]]}
    with pytest.raises(ValueError, match=r"`class_token_ids\['painting'\]` must have equally many texts"):
        JSCPTConfig(tasks={"painting": ["star", "house"]}, class_token_ids=ids)
