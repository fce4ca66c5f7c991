"""`JSCPTConfig.for_method`: what makes each method, what it may not be turned into, and how much it learns."""

from __future__ import annotations

import json
from dataclasses import fields

import oracles
import pytest
import torch
from peft import PeftConfig, get_peft_model
from transformers import CLIPConfig, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.methods import HYPERPARAMETERS, METHODS, check_training, method_fields, training_options
from jscpt_peft.scheduling import JointScheduling, LossCosineScheduling, UniformWeighting
from jscpt_peft.training import JSCPTTrainingArguments
from jscpt_peft.training.weightings import make_weighting

TASKS = {"art": ["cat", "dog"], "photo": ["cat", "dog", "fox"]}
IDS = {task: [[49406, 320 + label, 49407] for label in range(len(names))] for task, names in TASKS.items()}
N, L, D, D_V, D_L = len(TASKS), 12, 512, 768, 512  # ViT-B/16

# 16 shared and N x 16 task tokens in every block of both towers; a mask and two bottleneck MLPs of width 8 per task.
PROMPTS, MASKS, MLPS = (1 + N) * L * 16 * (D_V + D_L), N * D, N * 2 * (2 * 8 * D + 8 + D)
WHOLE = PROMPTS + MASKS + MLPS
MAP = D_L * D_V + D_V  # MaPLe's, from a text token to a vision token
BLOCK = 12 * 128**2 + 13 * 128 + 2 * 128 * (D_V + D_L) + 2 * 128 + D_V + D_L  # MVLPT's, of width 128, and its maps
MMAP = (1 + N) * L * (16 * 128 + (D_V + D_L) // 128)  # a source of width 128 and a factor per tower
SPLIT = 3 * 8 * D + 8 + 8 * 8  # the network that splits features, of width 8
MAPS = 2 * N * 8 * (D_V + D_L)  # of rank 8, per task and tower
LEARNED = {
    "zero_shot": 0,
    "coop": 8_192,
    "vpt": 147_456,
    "maple": L * (16 * D_L + MAP),
    "maple original": 9 * (2 * D_L + MAP),  # the 3.55 million of its paper
    "clip_adapter": 2 * 512 * 128,
    "mvlpt": 16 * (D_L + L * D_V) + BLOCK,
    "mvlpt original": 4 * (D_L + L * D_V) + BLOCK,
    "mmap": MMAP,
    "hipro": PROMPTS,  # without groups a root and a leaf per task
    "jscpt": WHOLE,
    "jscpt_no_feature_selection": WHOLE - MASKS,
    "jscpt_no_prompt_scheduling": WHOLE,
    "jscpt_no_task_scheduling": WHOLE,
    "jscpt_cagrad": WHOLE,
    "jscpt_projected": L * 16 * (D_V + D_L) + MAPS + SPLIT,
    "jscpt_projected original": 16 * (D_V + D_L) + MAPS + SPLIT,
    "mt_crl": PROMPTS + N * 8 + 2 * D * D,
}

every = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def vit_b_16():
    with torch.device("meta"):
        return CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))


@every
@pytest.mark.parametrize("hyperparameters", HYPERPARAMETERS)
def test_parameters_that_are_learned_on_vit_b_16(vit_b_16, name, hyperparameters, capsys):
    """As many as published, where the publication says so, and said beside its number."""
    words = {"prompt_init_token_ids": [320, 1125]} if name == "maple" else {}
    words |= {"class_position": "end"} if name == "mvlpt" else {}  # as these ids are
    config = JSCPTConfig.for_method(name, TASKS, hyperparameters, class_token_ids=IDS, **words)
    model = get_peft_model(vit_b_16, config)
    expected = LEARNED.get(f"{name} {hyperparameters}", LEARNED[name])
    assert model.get_nb_trainable_parameters()[0] == expected
    published = METHODS[name].published_parameters
    if published is not None:
        assert hyperparameters == "paper" or expected == published
        model.print_trainable_parameters()
        assert (
            f"published for {name} with its original settings on ViT-B/16: {published:,d}" in capsys.readouterr().out
        )
    assert all(parameter.is_meta for parameter in model.parameters())
    model.unload()


@every
def test_a_method_is_its_structure_and_nothing_may_override_it(tmp_path, name):
    structure = METHODS[name].structure
    config = JSCPTConfig.for_method(name, TASKS, prompt_init_std=0.5, **structure)  # the same again is no harm
    assert (config.method, config.prompt_init_std) == (name, 0.5)
    for field, needed in structure.items():
        assert getattr(config, field) == needed
        other = {int: 3, bool: not needed}.get(type(needed), "another")
        with pytest.raises(ValueError, match=f"`{field}` is {other!r}, but method {name!r} requires {needed!r}"):
            JSCPTConfig.for_method(name, TASKS, **{field: other})
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    shared = stored["intervention"] == "mask_mlp"
    stored |= {"intervention": "none" if shared else "mask_mlp"}  # somebody has edited the file
    (tmp_path / "adapter_config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=f"`intervention` is .*, but method {name!r} requires"):
        PeftConfig.from_pretrained(tmp_path)


@every
@pytest.mark.parametrize("hyperparameters", HYPERPARAMETERS)
def test_training_options_give_the_methods_weights(tmp_path, name, hyperparameters):
    options = training_options(name, hyperparameters)
    assert set(options) <= {field.name for field in fields(JSCPTTrainingArguments)}
    arguments = JSCPTTrainingArguments(str(tmp_path), **options, use_cpu=True, report_to=[])
    if arguments.gradient_aggregator is not None:
        pytest.importorskip("torchjd", reason="needs the extra `aggregators`")
    weighting = make_weighting(arguments, N)
    if name == "jscpt_projected":
        assert isinstance(weighting, LossCosineScheduling)
    elif name.startswith("jscpt"):
        assert isinstance(weighting, JointScheduling)
        assert weighting.scheduler.prompt_scheduling == (name != "jscpt_no_prompt_scheduling")
        assert weighting.scheduler.task_scheduling == (name != "jscpt_no_task_scheduling")
        assert (weighting.aggregator is not None) == (name == "jscpt_cagrad")
    else:
        assert isinstance(weighting, UniformWeighting)


def test_whose_hyperparameters():
    paper, original = (training_options("coop", each) for each in HYPERPARAMETERS)
    assert "learning_rate" not in paper and original["learning_rate"] == 2e-3
    fields_of = method_fields("vpt", num_shared_tokens=4)
    assert (fields_of["num_shared_tokens"], fields_of["class_template"]) == (4, "a photo of a {}.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cop", TASKS), r"`method` must be one of .*got 'cop'. Did you mean 'coop'\?"),
        (("jscpt_no_task_schedule", TASKS), r"Did you mean 'jscpt_no_task_scheduling'\?"),
        (("coop", TASKS, "papre"), r"`hyperparameters` must be one of .*Did you mean 'paper'\?"),
    ],
)
def test_a_typo_suggests_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        JSCPTConfig.for_method(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: JSCPTConfig(tasks=TASKS, method="coop"),
            r"method 'coop' requires 'text': use `JSCPTConfig.for_method",
        ),
        (lambda: JSCPTConfig.for_method("coop", TASKS, method="vpt"), "`method` is 'vpt' beside the method 'coop'"),
        (lambda: JSCPTConfig.for_method("coop", TASKS, num_shared_tokens=0), "requires at least 1"),
        (lambda: JSCPTConfig.for_method("mvlpt", TASKS, num_shared_tokens=0), "requires at least 1"),
        (lambda: JSCPTConfig.for_method("maple", TASKS, num_shared_tokens=0), "requires at least 1"),
        (lambda: JSCPTConfig.for_method("coop", TASKS, num_shared_tokens="4"), "must be a whole number, got '4'"),
        (
            lambda: JSCPTConfig.for_method("coop", TASKS, vision_init="uniform"),
            "`vision_init` is 'uniform', but there",
        ),
        (lambda: JSCPTConfig.for_method("clip_adapter", TASKS, prompt_depth=2), "`prompt_depth` is 2, but there"),
        (lambda: JSCPTConfig.for_method("mvlpt", TASKS, prompt_init="a"), "`prompt_init` is 'a', which prompts='unif"),
        (
            lambda: JSCPTConfig.for_method("hipro", TASKS, prompt_init="a", single_task=True),
            "give words that start shared text prompts",
        ),
        (
            lambda: check_training("jscpt_cagrad", JSCPTTrainingArguments("x", gradient_aggregator="mgda")),
            "`gradient_aggregator` is 'mgda', but method 'jscpt_cagrad' requires 'cagrad'",
        ),
    ],
)
def test_a_method_is_what_it_says(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_typo_in_a_field_suggests_the_nearest():
    with pytest.raises(TypeError, match=r"`prompt_depht` is no field.*Did you mean 'prompt_depth'"):
        JSCPTConfig.for_method("coop", TASKS, prompt_depht=2)


def test_a_configuration_that_was_changed_is_checked_again():
    config = JSCPTConfig.for_method("coop", TASKS, class_token_ids=IDS)
    config.towers = "both"
    with pytest.raises(ValueError, match="`towers` is 'both', but method 'coop' requires 'text'"):
        get_peft_model(oracles.tiny_clip(), config)
