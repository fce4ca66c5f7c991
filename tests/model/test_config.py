"""`JSCPTConfig` names what is wrong with it, and survives the disk."""

from __future__ import annotations

import json
import time
import unicodedata

import oracles
import prompted
import pytest
import torch
from paths import TINY_CLIP
from peft import PeftConfig, get_peft_model
from transformers import BertConfig, BertModel, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.data.task import check_names

TASKS, IDS = prompted.TASKS, prompted.class_token_ids()
FEW_IDS = {**IDS, "photo": IDS["photo"][:1]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "`tasks` is empty"),
        ({"tasks": ["cat", "dog"]}, "`tasks` must be a mapping, got"),
        ({"tasks": {"art": []}}, r"`tasks\['art'\]` has no class names"),
        ({"tasks": {"art": "cat"}}, r"`tasks\['art'\]` must be a list, got 'cat'"),
        ({"tasks": {"art": {"cat", "dog"}}}, r"`tasks\['art'\]` must be a list, got {"),
        ({"tasks": {"art": ["cat", None]}}, r"`tasks\['art'\]\[1\]` must be a string, got None"),
        ({"tasks": {"art": ["cat", "dog", "cat"]}}, r"names \['cat'\] more than once"),
        ({"task_type": "FEATURE_EXTRACTION"}, "`task_type` is 'FEATURE_EXTRACTION'"),
        ({"task_order": ["photo", "sketch"]}, "`task_order` .* must name each of `tasks`"),
        ({"towers": "visoin"}, "`towers` must be one of .*Did you mean 'vision'"),
        ({"prompts": "concatenate"}, "`prompts` must be one of .*Did you mean 'concatenated'"),
        ({"intervention": "mask_mpl"}, "Did you mean 'mask_mlp'"),
        ({"intervention_hidden": 0}, "`intervention_hidden` must be at least 1, got 0"),
        ({"num_shared_tokens": -1}, "`num_shared_tokens` must be at least 0, got -1"),
        ({"prompt_depth": 0}, "`prompt_depth` must be at least 1"),
        ({"class_template": "a photo"}, "`class_template` must contain {}"),
        ({"class_template": "a {} or {}"}, "`class_template` must contain {} .* once"),
        ({"class_template": "a {} in {colour}"}, "`class_template` must contain {} .* once"),
        ({"learn_masks": 3}, "`learn_masks` must be True or False, got 3"),
        ({"num_task_tokens": True}, "`num_task_tokens` must be a whole number, got True"),
        ({"num_task_tokens": "4"}, "`num_task_tokens` must be a whole number, got '4'"),
        ({"prompt_init_std": float("nan")}, "`prompt_init_std` must be a finite number, got nan"),
        ({"prompt_init": "a photo", "towers": "vision"}, "`prompt_init` is 'a photo', .* `towers` 'vision'"),
        ({"tasks": {1: ["cat", "dog"]}}, "`key 1 of tasks` must be a string, got 1"),
        ({"tasks": {"": ["cat", "dog"]}}, "a name in `tasks` is '': a task needs a name"),
        ({"tasks": {"a\x1b]52;b": ["cat", "dog"]}}, "a task needs a name, without control characters"),
        ({"tasks": {"art": ["cat", " "]}}, "' ' is no name of a class"),
        ({"tasks": {"art": ["cat", "\ud800"]}}, "is no name of a class"),
        ({"class_token_ids": {**prompted.class_token_ids(), "photo": [[97, 1.5, 98]] * 3}}, "list of whole numbers"),
        ({"class_token_ids": {**IDS, "x": []}}, r"`class_token_ids` names \['x'\]"),
        ({"class_token_ids": FEW_IDS}, r"`class_token_ids\['photo'\]` has 1 entries for 3 classes"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        JSCPTConfig(**{"tasks": TASKS, **options})


def with_text(*words):
    """The ids with another text of the class "dog" of the task "clipart"."""
    return {"class_token_ids": {**IDS, "clipart": [IDS["clipart"][0], [*words]]}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_depth": 4}, "`prompt_depth` is 4, but the base model's prompted towers have 3 blocks"),
        (
            with_text(oracles.TINY_SOS, *[3] * 71, oracles.TINY_EOS),
            "Class name 'dog' of task 'clipart' is too long: 73 tokens and 5 prompt",
        ),
        ({"class_token_ids": None}, "`tokenizer_name_or_path` is not set"),
        ({"target_modules": ["q_proj"]}, r"`target_modules` is \['q_proj'\]: leave it out"),  # as users of LoRA do
        *(
            (with_text(*broken), r"class 'dog' in task 'clipart' must be \[SOS\] ... \[EOS\]")
            for broken in ([5, 6, 7], [96, 5, 98], [97, 8, 5], [97, -1, 98], [97, 5, 99], [97, 98, 5])
        ),
    ],
)
@pytest.mark.parametrize("eos_token_id", [2, oracles.TINY_EOS])
def test_what_does_not_fit_the_base_model(options, message, eos_token_id):
    with pytest.raises(ValueError, match=message):
        get_peft_model(oracles.tiny_clip(eos_token_id=eos_token_id), prompted.config(**options))


def test_longest_name_that_fits():
    model = prompted.prompted_clip(**with_text(oracles.TINY_SOS, *[3] * 70, oracles.TINY_EOS))
    assert model.class_embeds().isfinite().all()


def test_not_a_clip_model():
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match="adapts a transformers `CLIPModel`, got a `BertModel`"):
        get_peft_model(bert, prompted.config())


def test_configuration_survives_the_disk(tmp_path):
    config = prompted.config(towers="text", prompt_depth=2)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, JSCPTConfig) and loaded.to_dict() == config.to_dict()
    # PEFT sorts the keys of what it stores, but the order of the tasks is that of the weights.
    assert list(loaded.tasks) == list(loaded.class_token_ids) == list(TASKS) != sorted(TASKS)


def test_order_of_the_token_ids_does_not_matter():
    one, other = (prompted.prompted_clip(class_token_ids=each) for each in (IDS, dict(reversed(IDS.items()))))
    assert torch.equal(one.class_embeds(), other.class_embeds())


def test_many_classes_take_no_time():
    """Nothing is quadratic in them."""
    tasks = {"plants": [f"species {number}" for number in range(20_000)]}
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    start = time.process_time()
    get_peft_model(clip, JSCPTConfig(tasks=tasks))
    assert time.process_time() - start < 2


CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


ALIKE = [("star", " star"), (CAFE, unicodedata.normalize("NFD", CAFE)), ("star", "star\u200d")]
ALIKE += [("sea star", "sea\u00a0star"), ("\u2764", "\u2764\ufe0f"), ("star", "star\u3164")]


@pytest.mark.parametrize("names", ALIKE)
def test_names_that_look_alike_are_refused(names):
    """Of classes of a task, and of tasks; wherever they come in."""
    model = prompted.prompted_clip()
    grown = lambda name: model.add_task(name, ["x"], class_token_ids=[[97, 3, 98]])  # noqa: E731
    grown(names[0])
    for make in (
        lambda: JSCPTConfig(tasks={"art": names}),
        lambda: JSCPTConfig(tasks={name: ["x", "y"] for name in names}),
        lambda: check_names("art", names),
        lambda: grown(names[1]),
    ):
        with pytest.raises(ValueError, match=r"look alike|looks like none of"):
            make()


@pytest.mark.parametrize("name", ["\u200d", "\u3164", "a\x1bb", "a\tb", "a\u202eb"])
def test_names_that_cannot_be_seen_or_printed_are_refused(name):
    with pytest.raises(ValueError, match="is no name of a class"):
        JSCPTConfig(tasks={"art": ["x", name]})


@pytest.mark.parametrize("names", [("star", "STAR"), ("star<|endoftext|>x", "star<|endoftext|>y")])
def test_classes_with_the_same_text_are_refused(names):
    """Their probabilities would be 0.5 and 0.5 for ever."""
    clip, tasks = CLIPModel.from_pretrained(TINY_CLIP), {"art": ["circle", *names]}
    with pytest.raises(ValueError, match=r"Classes .* of task 'art' have the same text|with one .EOS., the same"):
        get_peft_model(clip, JSCPTConfig(tasks=tasks))
    other = [[97, 3, 98]]
    again = {"photo": 3 * other, "clipart": 2 * other, "sketch": 4 * other}
    with pytest.raises(ValueError, match="Classes 'cat' and 'dog' of task 'photo' have the same text"):
        get_peft_model(oracles.tiny_clip(), JSCPTConfig(tasks=prompted.TASKS, class_token_ids=again))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"num_task_tokens": "3"}, "`num_task_tokens` must be a whole number, got '3'"),
        ({"target_modules": "((("}, "`target_modules` is '\\(\\(\\(', no regular expression"),
        ({"self": 1}, "'self'"),
    ],
)
def test_a_wrong_value_in_a_file_is_named_with_the_file(tmp_path, changed, problem):
    JSCPTConfig(tasks={"art": ["cat", "dog"]}).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ValueError, match=rf"{path}: .*{problem}.*\. Get the adapter again, or mend it"):
        JSCPTConfig.from_pretrained(tmp_path)


def test_a_tokenizer_with_code_of_its_own_is_refused_without_asking(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = JSCPTConfig(tasks={"art": ["cat"]}, tokenizer_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match="code of its own, which is never run: give CLIP's own") as error:
        get_peft_model(oracles.tiny_clip(), config)
    assert "trust_remote_code" not in str(error.value)


def test_an_option_that_the_head_does_not_know_is_said():
    with pytest.warns(UserWarning, match="`intervention_hidden` is 9, which intervention='none' does not know"):
        JSCPTConfig(tasks={"art": ["cat"]}, intervention="none", intervention_hidden=9)
