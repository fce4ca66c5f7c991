"""The commands of the README and the documentation, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import sys

import benchmark_data
import pytest
from hub_server import Hub
from paths import RECIPES, ROOT, TINY_CLIP, load_recipe

from jscpt_peft.data.benchmark import HubTable
from jscpt_peft.data.benchmarks import BENCHMARKS, TASK_SET_MEMBERS

# What makes a run short; everything else is as the commands and the task sets' YAML files have it.
QUICK = ["--max_steps", "2", "--lower_steps", "2", "--per_device_train_batch_size", "1", "--dev_batch_size", "1"]
QUICK += ["--num_shared_tokens", "1", "--num_task_tokens", "1", "--dataloader_num_workers", "0", "--use_cpu"]
COUNTS = {"train": 4, "validation": 1, "test": 1, "pool": 4}
# The copies have so few images that the task set's own 1 % says nothing: half of them are taken.
FRACTIONS = {"mini_domainnet": ["--train_fraction", "0.5"]}


def commands() -> list[tuple[str, list[str]]]:
    """Recipe and arguments of every command in a bash block."""
    found = []
    for file in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                recipe = re.search(r"recipes/(\w+)\.py", line)
                if recipe:
                    found.append((recipe[1], shlex.split(line[recipe.end() :], comments=True)))
    return found


COMMANDS = commands()
BENCHMARKED = [
    words
    for recipe, words in COMMANDS
    if recipe == "train" and {*words} & {*BENCHMARKS, *TASK_SET_MEMBERS, "food101,oxford_flowers,oxford_pets"}
]


def test_every_command_is_understood(monkeypatch):
    assert {"train", "evaluate", "predict"} <= {recipe for recipe, _ in COMMANDS}
    for recipe, words in COMMANDS:
        module, understood = load_recipe(recipe), []
        if recipe == "benchmark":
            module.RecipeParser(module.BenchmarkArguments).parse_dataclasses(words)
            continue
        step = "run" if hasattr(module, "run") else recipe
        monkeypatch.setattr(module, step, lambda *given, understood=understood: understood.append(given) or [{}])
        if words[0].endswith(".yaml") and not (ROOT / words[0]).exists():
            words = words[1:]  # a file of the reader's own
        module.main([str(RECIPES.parent / word) if word.startswith("recipes/") else word for word in words])
        assert len(understood) == 1, words


@pytest.fixture(scope="module")
def hub():
    """The data sets' first parquet repositories, and under ViT-B/16's name a small CLIP."""
    with Hub() as hub:
        hub.add("openai/clip-vit-base-patch16", TINY_CLIP)
        for name, benchmark in BENCHMARKS.items():
            place = next(each for each in benchmark.hub if isinstance(each, HubTable))
            files = benchmark_data.repository(name, place, COUNTS)
            hub.add(place.repository, files, kind="datasets", revision=place.revision or "main")
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
@pytest.mark.parametrize("words", BENCHMARKED, ids=" ".join)
def test_benchmarks_train(words, hub, home, tmp_path):
    words, output = list(words), tmp_path / "out"
    words[words.index("--output_dir") + 1] = str(output)
    task_set = words[words.index("--task_set") + 1]
    if "--data_root" in words:
        benchmark_data.folder(task_set, tmp_path / "data", {"train": 6, "validation": 2, "test": 2})
        words[words.index("--data_root") + 1] = str(tmp_path / "data")
    fractions = [] if "--data_root" in words else FRACTIONS.get(task_set, [])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", str(RECIPES / "train.py")]
    done = hub.run([*launcher, *words, *QUICK, *fractions], home=home, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    results, manifest = (json.loads((output / f"{name}.json").read_text()) for name in ("results", "manifest"))
    assert manifest["task_set"] == task_set
    members = [name for part in task_set.split(",") for name in TASK_SET_MEMBERS.get(part, [part])]
    tasks = [task for name in members for task in BENCHMARKS[name].tasks]
    assert list(results["tasks"]) == list(manifest["tasks"]) == tasks
    assert {"adapter_model.safetensors", "results.md", "losses.png"} <= {path.name for path in output.iterdir()}
    base = json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == "openai/clip-vit-base-patch16"
