"""The commands for the paper's benchmarks, as docs/benchmarks.md has them, on small copies of the data sets."""

from __future__ import annotations

import json
import shutil
import sys

import benchmark_data
import pytest
from documents import commands
from hub_server import Hub
from paths import ROOT, TINY_CLIP
from transformers import CLIPConfig, CLIPModel

from jscpt_peft.data.benchmark_tasks import BENCHMARK_TASK_SETS
from jscpt_peft.data.benchmarks import BENCHMARKS, TASK_SET_MEMBERS

# What makes a run short; everything else is as the page and the task sets' YAML files have it.
QUICK = ["--max_steps", "2", "--lower_steps", "2", "--per_device_train_batch_size", "1", "--dev_batch_size", "1"]
QUICK += ["--num_shared_tokens", "1", "--num_task_tokens", "1", "--dataloader_num_workers", "0", "--use_cpu"]
COUNTS = {"train": 4, "validation": 1, "test": 1, "pool": 4}


def benchmark_commands() -> dict[str, list[str]]:
    """Task set (and `, from a folder` where it is) -> words of the command."""
    found = {}
    for words in commands(ROOT / "docs" / "benchmarks.md"):
        name = words[words.index("--task_set") + 1] if "--task_set" in words else ""
        if any(part in BENCHMARK_TASK_SETS for part in name.split(",")):
            found[f"{name}, from a folder" if "--data_root" in words else name] = words
    return found


COMMANDS = benchmark_commands()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The data sets' first parquet repositories, and under ViT-B/16's name a CLIP of one block a tower."""
    small = shutil.copytree(TINY_CLIP, tmp_path_factory.mktemp("clip") / "small")
    config = CLIPConfig.from_pretrained(TINY_CLIP)
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    CLIPModel(config).save_pretrained(small)
    with Hub() as hub:
        hub.add("openai/clip-vit-base-patch16", small)
        for name in ("food101", "oxford_flowers", "oxford_pets"):
            benchmark_data.publish(hub, name, per_class=COUNTS)
        yield hub


def test_all_benchmarks_are_there():
    assert set(COMMANDS) == {
        *("office_home", "mini_domainnet", "few_shot_10", "food101,oxford_flowers,oxford_pets"),
        "office_home, from a folder",
    }


# The others load in `tests/data/test_benchmark_hub.py`; the largest ones train in `tests/data/test_memory.py`.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["food101,oxford_flowers,oxford_pets", "office_home, from a folder"])
def test_command(name, hub, tmp_path):
    """Without the launcher, whose own arguments `test_commands.py` checks: it would import everything anew."""
    words = COMMANDS[name][COMMANDS[name].index("recipes/train.py") + 1 :]
    task_set, output = words[words.index("--task_set") + 1], tmp_path / "out"
    words[words.index("--output_dir") + 1] = str(output)
    if "--data_root" in words:
        benchmark_data.folder(task_set, tmp_path / "data", COUNTS)
        words[words.index("--data_root") + 1] = str(tmp_path / "data")
    program = [sys.executable, str(ROOT / "recipes" / "train.py")]
    done = hub.run([*program, *words, *QUICK], home=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    results, manifest = (json.loads((output / f"{name}.json").read_text()) for name in ("results", "manifest"))
    assert manifest["task_set"] == task_set
    members = [name for part in task_set.split(",") for name in TASK_SET_MEMBERS.get(part, [part])]
    tasks = [task for name in members for task in BENCHMARKS[name].tasks]
    assert list(results["tasks"]) == list(manifest["tasks"]) == tasks
    assert {"adapter_model.safetensors", "results.md", "losses.png"} <= {path.name for path in output.iterdir()}
    base = json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == "openai/clip-vit-base-patch16"
