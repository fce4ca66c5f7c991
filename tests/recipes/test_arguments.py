"""Arguments come from the dataclasses, by the command line or a file; a wrong one is answered with the remedy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial

import pytest
import yaml
from arguments import CONFIGS, RecipeParser, default_model, parse
from model_arguments import ModelArguments, config_fields, model_config
from paths import TINY_CLIP
from peft import PeftConfig
from recipe_runs import fails
from task_data import DataArguments, make_datasets
from transformers import CLIPImageProcessorPil

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import load_task_set
from jscpt_peft.scheduling import AGGREGATORS
from jscpt_peft.training import JSCPTTrainingArguments
from jscpt_peft.training.arguments import WEIGHTINGS

KINDS = (DataArguments, ModelArguments, JSCPTTrainingArguments)
FILLED = {"tasks", "task_order", "class_token_ids", "prompt_init_token_ids", "target_modules", "base_dimensions"}
FILLED |= {"task_type", "tokenizer_name_or_path", "init_seed"}
CHOICES = {
    "affinity": ["cosine", "unclipped", "clipped"],
    "gradient_aggregator": [*AGGREGATORS],
    "weighting": [*WEIGHTINGS],
    "towers": ["text", "vision", "both"],
}


def parsed(*arguments, kinds=KINDS):
    return {name: value for each in parse(kinds, "", list(arguments)) for name, value in vars(each).items()}


def helped(capsys, *arguments, kinds=KINDS):
    with pytest.raises(SystemExit) as stop:
        parsed(*arguments, kinds=kinds)
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_field_that_a_user_can_say_is_an_argument_and_in_help(capsys):
    own = {each.name for each in fields(JSCPTConfig)} - {each.name for each in fields(PeftConfig)}
    expected = own - FILLED | set(JSCPTTrainingArguments.__annotations__)
    expected -= {"remove_unused_columns", "label_names", "_argument_group_name"}
    text = helped(capsys, "--help")
    assert {name for name in expected if f"--{name} " not in text} == set()
    assert not [name for name in (*FILLED, "peft_type", "inference_mode") if f"--{name} " in text]
    assert "--task_set" in text and "(default: 10)" in text and "--deepspeed" not in text
    assert "--deepspeed" in helped(capsys, "--help_all")


def test_a_new_field_is_an_argument_by_itself(capsys):
    @dataclass
    class Config(JSCPTConfig):
        colour: str | dict[str, str] = field(default="red", metadata={"help": "Of everything."})
        palette: list[str] | None = None

    @dataclass
    class Training(JSCPTTrainingArguments):
        patience: int | None = field(default=None, metadata={"help": "How long to wait."})

    kinds = (DataArguments, make_dataclass("Model", [*config_fields(Config)]), Training)
    text = helped(capsys, "--help", kinds=kinds)
    assert "--colour COLOUR Of everything. (default: red)" in text and "--palette" not in text
    assert "--patience PATIENCE How long to wait." in text
    assert parsed("--output_dir", "x", "--colour", "blue", "--patience", "3", kinds=kinds)["patience"] == 3


def test_switches_and_choices_from_the_command_line_and_from_a_file(tmp_path):
    switches = [each for kind in (ModelArguments, JSCPTTrainingArguments) for each in fields(kind)]
    own = set(ModelArguments.__annotations__) | set(JSCPTTrainingArguments.__annotations__)
    on = [each.name for each in switches if each.default is True and each.name in own]
    assert {"learn_masks", "learn_scheduler", "prompt_scheduling", "task_scheduling"} <= set(on)
    config = tmp_path / "mine.yaml"
    for name, values in {**{name: [False, True] for name in on}, **CHOICES}.items():
        for value in values:
            assert parsed("--output_dir", "x", f"--{name}", str(value))[name] == value
            config.write_text(yaml.safe_dump({name: value, "output_dir": "x"}))
            assert parsed(str(config))[name] == value
    for name in on:
        assert parsed("--output_dir", "x", f"--no_{name}")[name] is False


def test_command_line_beats_file_beats_task_set(tmp_path):
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"num_shared_tokens": 5, "num_task_tokens": 6, "shots": 3, "output_dir": "x"}))
    values = parsed(str(config), "--num_task_tokens", "7")
    assert (values["num_shared_tokens"], values["num_task_tokens"], values["output_dir"]) == (5, 7, "x")
    own = yaml.safe_load((CONFIGS / "shapes.yaml").read_text())
    assert (values["task_set"], values["shots"], values["learning_rate"]) == ("shapes", 3, own["learning_rate"])
    assert parsed(str(config), "--learning_rate", "0.5")["learning_rate"] == 0.5
    values = parsed("--task_set", "folder", "--output_dir", "x")  # which has no file: the paper's values
    assert (values["learning_rate"], values["momentum"], values["num_train_epochs"]) == (0.0015, 0.9, 50)
    assert (values["lower_steps"], values["neumann_terms"], values["per_device_train_batch_size"]) == (10, 3, 16)
    assert (values["num_shared_tokens"], values["num_task_tokens"], values["prompt_depth"]) == (16, 16, None)


@pytest.mark.parametrize("option", [["--task_set", "dtd"], ["--task-set", "dtd"], ["--task_set=food101,dtd"]])
def test_every_spelling_of_the_task_set_finds_its_settings(option):
    for arguments in (option, ["--task_set", "shapes", *option]):  # the last one counts
        values = parsed(*arguments, "--output_dir", "x")
        assert values["task_set"].endswith("dtd")
        assert values["model_name_or_path"] == "openai/clip-vit-base-patch16"
        assert values["per_device_train_batch_size"] == 32


def test_a_method_is_made_by_its_structure_and_tuned_by_the_task_set_or_its_authors():
    coop = ["--method", "coop", "--output_dir", "x"]
    own = yaml.safe_load((CONFIGS / "shapes.yaml").read_text())
    _, model, training = parse(KINDS, "", coop)
    config = model_config(model, {"art": ["cat", "dog"]}, "clip", 3)
    assert (config.method, config.towers, config.num_task_tokens, config.prompt_depth) == ("coop", "text", 0, 1)
    assert (config.num_shared_tokens, config.init_seed) == (own["num_shared_tokens"], 3)
    assert (training.learning_rate, training.learn_scheduler) == (own["learning_rate"], False)
    values = parsed(*coop, "--hyperparameters", "original")
    assert (values["num_shared_tokens"], values["learning_rate"], values["num_train_epochs"]) == (16, 2e-3, 200)
    # Where the publication says nothing the defaults hold, and none of the task set's values, its steps included.
    assert (values["class_template"], values["prompt_init_std"], values["optim"]) == ("{}.", 0.02, "sgd")
    icons = parsed(*coop, "--hyperparameters", "original", "--task_set", "icons")
    assert (icons["max_steps"], icons["per_device_train_batch_size"], icons["eval_steps"]) == (-1, 32, 68)
    assert parsed(*coop, "--hyperparameters", "original", "--learning_rate", "0.5")["learning_rate"] == 0.5


def test_jpegs_for_training_alone_are_decoded_smaller():
    data, processor = DataArguments(jpeg_side=64), CLIPImageProcessorPil.from_pretrained(str(TINY_CLIP))
    task_set = load_task_set("shapes", shots=1)
    splits = make_datasets(task_set, processor, data, seed=0)
    assert {split: images.jpeg_side for split, images in splits.items() if images.jpeg_side} == {"train": 64}
    size = processor.crop_size["height"]
    with pytest.raises(ValueError, match=f"`jpeg_side` is {size - 1}, but the base model's images have {size} pixels"):
        make_datasets(task_set, processor, replace(data, jpeg_side=size - 1), seed=0)


def test_the_base_model_of_a_task_set():
    assert default_model("office_home") == "openai/clip-vit-base-patch16"
    assert default_model("shapes") == str(TINY_CLIP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gradient_agregator", "cagrad"], "argument '--gradient_agregator'. Did you mean 'gradient_aggregator'?"),
        (["--affinity", "cosin"], "got 'cosin'. Did you mean 'cosine'?"),
        (["--gradient_aggregator", "mgda", "--no_task_scheduling"], "`task_scheduling=False` switches off"),
        (["--method", "jscpt_cagrad", "--weighting", "uw"], "`gradient_aggregator='cagrad'` is an option of Eqs. 4-6"),
        (["--method", "cop"], "got 'cop'. Did you mean 'coop'?"),
        (["--hyperparameters", "original"], "`hyperparameters` 'original' are those of a `method`: name one"),
        (["--method", "coop", "--towers", "both"], "`towers` is 'both', but method 'coop' requires 'text'"),
        (["--learning_rate", "nan"], "`learning_rate` must be a finite number, got nan"),
        (["--train_fraction", "1.5"], "`train_fraction` must be at most 1, got 1.5"),
        (["--lower_steps", "ten"], "argument --lower_steps/--lower-steps: invalid int value: 'ten'"),
        (["--templates", "own", "--class_template", "a {}"], "`templates` is 'own' and `class_template` 'a {}':"),
        (["--method", "mmap", "--tree_levels", "2"], "`tree_levels` is 2, which is for `groups`"),
        (["--method", "mmap", "--groups", "x.yaml", "--num_groups", "2"], "`num_groups` is 2, which is for `groups`"),
        (["--max_steps", "0"], "`max_steps` is 0, which `Trainer` takes for all epochs"),
        (["--max_steps", "4", "--warmup_steps", "5"], "`warmup_steps` is 5.0, beyond `max_steps` 4"),
        (["shapes"], "not used by the HfArgumentParser: ['shapes']"),
        (["missing.yaml"], "missing.yaml does not exist"),
    ],
)
def test_a_wrong_argument_is_answered(capsys, arguments, message):
    assert message in fails(capsys, partial(parse, KINDS, ""), *arguments, "--output_dir", "x")


def test_a_wrong_file_is_answered(capsys, tmp_path):
    config = tmp_path / "mine.yaml"
    for content, message in {
        "learning_rat: 1": "unknown argument 'learning_rat'. Did you mean 'learning_rate'?",
        "- 1": "must hold `argument: value` pairs, got list",
        "a: 1\nb: [": "mine.yaml cannot be read: line 2: expected the node content",
        "seed: 2024-13-01": "cannot be read: month must be in 1..12",
        "[" * 2000: "cannot be read: it is nested too deeply",
        "seed: 1\nseed: 2": "cannot be read: line 2: it has the key 'seed' twice",
        "a: !!python/object:os.system x": "cannot be read: line 1: could not determine a constructor",
        "a: \x00": "cannot be read: ",
        "a: &a [x]\nseed: [*a, *a]": "unknown argument 'a'",
        "seed: null": "mine.yaml: `seed` must be a whole number, got None",
        "seed: '3'": "`seed` must be a whole number, got '3'",
        "task_set: [shapes]": "`task_set` must be a string, got ['shapes']",
        "method: 2024-01-01": "`method` must be a string or None, got datetime.date(2024, 1, 1)",
        "learn_masks: 3": "`learn_masks` must be True or False, got 3",
        "lower_steps: 2.5": "`lower_steps` must be a whole number or a string, got 2.5",
        "save_strategy: no": "`save_strategy` must be one of 'no', 'steps', 'epoch', 'best', got False",
        "class_template: {art: 5}": "`class_template['art']` must be a string or a list, got 5",
        **{
            f"seed: {word}": f"must be a whole number, got '{word}'"
            for word in ("1:30", "017", "0x1f", "1_000", "0b1")
        },
        "learning_rate: 1:30.5": "must be a finite number, got '1:30.5'",
        "help: 1": "unknown argument 'help'",
    }.items():
        config.write_text(content)
        assert message in fails(capsys, partial(parse, KINDS, ""), config)


def test_numbers_of_a_file(tmp_path):
    config, templates = tmp_path / "mine.yaml", {"art": "a {}", "toys": "the {}"}
    config.write_text(f"output_dir: x\nlearning_rate: 1e-3\nweight_decay: 1\nclass_template: {json.dumps(templates)}")
    values = parsed(str(config))
    assert (values["learning_rate"], values["weight_decay"]) == (0.001, 1)
    assert values["class_template"] == templates


def test_a_typo_is_named_before_what_is_missing(capsys):
    parser = RecipeParser()
    parser.add_argument("--adapter", required=True)
    assert "unknown argument '--adaptor'. Did you mean 'adapter'?" in fails(capsys, parser.parse_args, "--adaptor=x")
