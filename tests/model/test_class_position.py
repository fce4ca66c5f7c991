"""`class_position="middle"`: half of the text prompts behind the class name, wherever the text comes from."""

from __future__ import annotations

import adapted
import oracles
import prompted
import pytest
import torch
from paths import TINY_CLIP
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoTokenizer, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.model.class_texts import SECOND_HALF
from jscpt_peft.model.class_tokens import class_token_ids
from jscpt_peft.model.unseen_classes import unseen_class_embeds

WORDS = ["green", "small", "old"]  # one token each, of which prompts are made
TEMPLATES = {"painting": ["a {} of wood.", "{}"], "sketch": "a drawing of the {}."}


def worded(templates=TEMPLATES, **options) -> JSCPTConfig:
    words = {"prompt_init": " ".join(WORDS), "num_shared_tokens": len(WORDS), "class_template": templates}
    return JSCPTConfig.for_method("coop", adapted.TASKS, class_position="middle", **{**words, **options})


def plain_features(base: CLIPModel, templates: list[str], names: list[str]) -> torch.Tensor:
    """Of CLIP for the texts in which the words of the prompts stand where half of them, and the others, belong."""
    one, *others = WORDS
    texts = [[f"{one} {each.replace('{}', ' '.join([name, *others]))}" for name in names] for each in templates]
    return adapted.of_templates(base, texts)


@torch.no_grad()
def test_prompts_that_are_words_make_the_sentence_that_they_would(tmp_path):
    model, base = get_peft_model(adapted.clip(), worded()), adapted.clip()
    model.add_task("icons", ["key", "old bell"], class_template="{} on paper")
    model.save_pretrained(tmp_path)
    for each in (model, PeftModel.from_pretrained(adapted.clip(), tmp_path)):
        config, embeds = each.active_jscpt_config, each.class_embeds()
        for task, (name, classes) in enumerate(config.tasks.items()):
            expected = plain_features(base, config.templates(name), classes)
            assert_close(embeds[task, : len(classes)], expected, atol=1e-5, rtol=1e-5)
        unseen = ["ladder", "paper bag"]
        expected = plain_features(base, TEMPLATES["painting"], unseen)
        assert_close(unseen_class_embeds(each, "painting", unseen), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("template", ["{}.", "the {}s", "{}"])
@pytest.mark.parametrize("name", ["U.S.", "cat", "lightning bolt"])
def test_as_many_tokens_as_the_name_has_on_its_own_come_first(template, name):
    """As in CoOp, also where the tokenizer joins the end of the name with what follows."""
    config, tokenizer = worded("x {}"), AutoTokenizer.from_pretrained(TINY_CLIP)
    config.class_template = template
    (ids,) = class_token_ids(config, adapted.clip().config, "sketch", [name])
    before = template.partition("{}")[0] + name
    assert ids.index(SECOND_HALF) == min(len(tokenizer(before).input_ids), len(ids) - 1) - 1
    assert [each for each in ids if each != SECOND_HALF] == tokenizer(template.format(name)).input_ids


def made(middle_ids=True, **options):
    ids = prompted.class_token_ids()
    options = {"class_position": "middle", "num_task_tokens": 0, "intervention": "none", "prompt_depth": 1, **options}
    ids = prompted.in_the_middle(ids) if middle_ids else ids
    return get_peft_model(oracles.tiny_clip(), prompted.config(class_token_ids=ids, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_depth": None}, "`class_position` is 'middle', but 3 blocks of the text tower.*prompt_depth=1"),
        ({"towers": "vision"}, "`class_position` is 'middle', but no blocks of the text tower have prompts"),
        ({"num_shared_tokens": 0, "prompt_depth": None}, "`class_position` is 'middle', but no blocks"),
        (
            {"middle_ids": False},
            r"of class 'cat' in task 'photo' must be \[SOS\] \.\.\. \[EOS\], -1 once among them",
        ),
        ({"class_position": "end"}, r"of class 'cat' in task 'photo' must be \[SOS\] .*, got \[[^]]*\]\.$"),
        ({"class_position": "midle"}, "`class_position`.*'midle'.*'middle'"),
        ({"num_shared_tokens": 73}, "'fox' of task 'photo' is too long: 5 tokens and 73 prompt tokens"),
    ],
    ids=str,
)
def test_where_it_has_no_meaning_it_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_plain_ids_do_not_tell_where_a_name_ends():
    model = made()
    model.set_task("photo")
    with pytest.raises(ValueError, match=r"`input_ids` do not tell where the class name ends.*`classify`"):
        model.get_text_features(input_ids=torch.tensor([[oracles.TINY_SOS, 5, oracles.TINY_EOS]]))
    with model.disable_adapter():
        classes = model.class_embeds()
        ids = prompted.class_token_ids()["clipart"][:1]
        plain = model.get_text_features(input_ids=torch.tensor(ids)).pooler_output
    assert_close(classes[1, :1], plain, atol=1e-10, rtol=0)
