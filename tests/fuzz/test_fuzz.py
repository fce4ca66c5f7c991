"""Whatever is given, the answer is in words: an error that names the argument or the file, and never a raw traceback.

Seeded; `JSCPT_FUZZ_EXAMPLES=2000` tries so many inputs, `JSCPT_FUZZ_SEED=1` others. How many there were is printed.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import tempfile
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields
from pathlib import Path

import oracles
import prompted
import pytest
import torch
import yaml
from adapter import adapter_config
from arguments import RecipeParser, parse
from evaluated_model import EvaluatedModelArguments
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from model_arguments import ModelArguments
from paths import load_recipe
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from task_data import DataArguments

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import load_task_set
from jscpt_peft.model.adapter_file import DIGEST_FILE
from jscpt_peft.training import JSCPTTrainingArguments

EXAMPLES = int(os.environ.get("JSCPT_FUZZ_EXAMPLES", "350"))
SEED = int(os.environ.get("JSCPT_FUZZ_SEED", "0"))
TESTS = 7
SETTINGS = settings(
    max_examples=math.ceil(EXAMPLES / TESTS), deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + EXAMPLES), pytest.mark.filterwarnings("ignore")]

words = st.text(max_size=12) | st.sampled_from(
    ["", "shapes", "both", "coop", "{}", "{} {}", "../x", "a\x00b", "nan", "a=1", '{"a": NaN}']
)
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2.5, 4096, math.nan, math.inf, 10**11, 1e300])
scalars = st.none() | st.booleans() | numbers | words
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)
any_values = json_values | st.dates() | st.binary(max_size=5) | st.sets(words, max_size=3)


def fuzz(*strategies):
    """Makes a test of one that takes inputs: it gets generated ones."""

    def decorate(test):
        def with_all_inputs(capsys):
            count = 0

            @seed(SEED)
            @SETTINGS
            @given(st.tuples(*strategies))
            def with_one(inputs):
                nonlocal count
                count += 1
                test(*inputs)

            with_one()
            with capsys.disabled():
                print(f"\n{test.__name__}: {count} inputs, 0 raw errors")

        with_all_inputs.__doc__ = test.__doc__
        return with_all_inputs

    return decorate


# What Python says by itself, to nobody who could know what is meant.
RAW = re.compile(
    r"object (is|has|of|does|cannot)|unhashable|not subscriptable|codec can't|could not convert|invalid literal|"
    r"takes \d+ positional|unexpected keyword|'>' not supported|'<' not supported|unsupported operand|^\[Errno"
)


@contextmanager
def answered(*names):
    """Within, nothing fails but in words; one of `names` is among them."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
        assert message and (not names or any(name in message for name in names)), repr(error)
        assert not RAW.search(message) and not isinstance(error, UnicodeError), repr(error)


def some_fields(kind, *left_out):
    names = [each.name for each in fields(kind) if each.init and each.name not in left_out]
    return st.dictionaries(st.sampled_from(names), any_values, min_size=1, max_size=3)


@fuzz(some_fields(JSCPTConfig, "peft_type", "peft_version"))
def test_configurations(options):
    with answered(*options):
        config = JSCPTConfig(**{"tasks": prompted.TASKS, "class_token_ids": prompted.class_token_ids(), **options})
        get_peft_model(oracles.tiny_clip(), config)


@fuzz(some_fields(JSCPTTrainingArguments, "output_dir"))
def test_training_arguments(options):
    with answered(*options):
        JSCPTTrainingArguments(**{"output_dir": "x", "use_cpu": True, **options})


KINDS = [
    (DataArguments, ModelArguments, JSCPTTrainingArguments),
    (DataArguments, EvaluatedModelArguments, load_recipe("evaluate").EvaluationArguments),
]
NAMES = sorted({name for kinds in KINDS for name in RecipeParser(kinds).names} - {"help"})
options = st.sampled_from([f"--{name}" for name in NAMES])


def parse_or_say_why(kinds, arguments):
    with redirect_stderr(io.StringIO()) as said:
        try:
            parse(kinds, "", [*arguments, "--output_dir", "x", "--use_cpu"])
        except SystemExit as end:
            assert end.code == 2 and ": error: " in said.getvalue()


@fuzz(
    st.sampled_from(KINDS), st.lists(st.tuples(options, words | numbers.map(repr)) | words.map(lambda word: (word,)))
)
def test_command_lines(kinds, pairs):
    parse_or_say_why(kinds, [word for pair in pairs for word in pair if not word.startswith(("-h", "--h"))])


content = st.dictionaries(st.sampled_from(NAMES) | words, json_values | st.dates(), max_size=4)
files = st.binary(max_size=60) | st.text(max_size=60).map(str.encode)
files |= content.map(lambda values: yaml.safe_dump(values).encode()) | content.map(
    lambda values: json.dumps(values, default=str).encode()
)


@fuzz(st.sampled_from(KINDS), files, st.sampled_from(["mine.yaml", "mine.json"]))
def test_configuration_files(kinds, file, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(file)
        parse_or_say_why(kinds, [str(path)])


SAVED = {}


def saved_adapter():
    """Configuration, tensors and digest of a good adapter."""
    if not SAVED:
        with tempfile.TemporaryDirectory() as folder:
            prompted.prompted_clip(torch.float32).save_pretrained(folder)
            SAVED["config"] = json.loads(Path(folder, "adapter_config.json").read_text())
            SAVED["tensors"] = load_file(Path(folder, "adapter_model.safetensors"))
            SAVED["digest"] = Path(folder, DIGEST_FILE).read_bytes()
    return SAVED["config"], SAVED["tensors"], SAVED["digest"]


shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.none() | st.builds(torch.zeros, shapes, dtype=st.sampled_from([torch.float32, torch.int8, torch.bool]))
tensors |= st.builds(torch.full, shapes, st.floats(), dtype=st.just(torch.float64))


@fuzz(
    st.dictionaries(st.sampled_from(range(30)) | words, json_values, max_size=2),
    st.dictionaries(st.sampled_from(range(12)) | words, tensors, max_size=2),
    st.none() | st.tuples(st.integers(0, 40_000), st.binary(max_size=8)),
    st.none() | st.binary(max_size=90) | st.just("right"),
    st.none() | st.binary(max_size=40) | st.sampled_from([b"[" * 10**5, b"\xff\xfe{", b'{"a": 1, "a": 2}']),
)
def test_adapters(of_config, of_tensors, damage, digest, raw_config):
    """A refused one leaves the base model as it was."""

    def changed(good, changes):
        names = list(good)
        named = {names[key % len(names)] if isinstance(key, int) else key: value for key, value in changes.items()}
        return {**good, **named}

    config, held, right = saved_adapter()
    clip = oracles.tiny_clip(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(changed(config, of_config)).encode()
        Path(folder, "adapter_config.json").write_bytes(text if raw_config is None else raw_config)
        kept = {name: tensor for name, tensor in changed(held, of_tensors).items() if tensor is not None}
        weights = Path(folder, "adapter_model.safetensors")
        save_file(kept, weights)
        if damage is not None:
            raw = bytearray(weights.read_bytes())
            raw[damage[0] : damage[0] + len(damage[1])] = damage[1]
            weights.write_bytes(raw)
        if digest is not None:
            Path(folder, DIGEST_FILE).write_bytes(right if digest == "right" else digest)
        loaded = False
        with answered():
            adapter_config(folder, revision=None)
            PeftModel.from_pretrained(clip, folder)
            loaded = True
    after = clip.state_dict()
    assert loaded or (list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before))


def picture(size, kind, cut):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()[:cut]


images = st.binary(max_size=200) | st.builds(
    picture,
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["PNG", "JPEG", "GIF"]),
    st.integers(0, 900),
)
names = st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=8)
paths = st.lists(
    names | st.sampled_from(["train", "Test", "val", "x_train", "x_test", "a", "b"]), min_size=1, max_size=4
)


@fuzz(st.lists(st.tuples(paths, st.sampled_from(["png", "jpg", "gif", "txt"]), images), max_size=12), st.booleans())
def test_folders(tree, skip):
    with tempfile.TemporaryDirectory() as root:
        for number, (path, kind, image) in enumerate(tree):
            file = Path(root, *(part for part in path if part not in (".", "..")), f"{number}.{kind}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
        with answered():
            for task in load_task_set("folder", root, skip_bad_images=skip):
                for row in task.train:
                    row["image"].load()


@fuzz(st.lists(images, min_size=1, max_size=3), st.sampled_from(["png", "jpg", "tif"]), st.integers(-1, 3) | scalars)
def test_image_bytes(contents, kind, batch_size):
    """As `predict` gets them."""
    if "model" not in SAVED:
        SAVED["model"] = prompted.prompted_clip(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.{kind}") for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        with answered("images[", "batch_size"):
            found = SAVED["model"].predict(paths, task="photo", batch_size=batch_size)
            assert len(found) == len(paths) and all(math.isfinite(p) for each in found for p in each.values())
