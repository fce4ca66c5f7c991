"""Publishing adapters to the Hub (its stand-in): by the model, by the trainer, by the recipe, and where it fails."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub
from huggingface_hub import ModelCard
from paths import TINY_CLIP
from PIL import Image
from recipe_runs import QUICK

pytestmark = pytest.mark.slow  # every program is a process of its own

TESTS = Path(__file__).parents[1]
RECIPES = TESTS.parent / "recipes"
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "adapter_model.sha256"}
FIGURES = {
    *("losses.png", "weights.png", "affinity.png", "gradient_cosines.png"),
    *("causal_effects.png", "prompt_scheduling.png"),
}
START = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import prompted, small_run, torch
place = Path(sys.argv[1])

def error_of(function, *arguments, **keywords):
    try:
        return str(function(*arguments, **keywords))
    except OSError as error:
        return str(error)
"""


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


def run(hub: Hub, program: str, place: Path, **options) -> list:
    """Runs a program in a process of its own; returns what it prints last, as JSON."""
    done = hub.run([sys.executable, "-c", START + program, str(place)], place, PYTHONPATH=str(TESTS), **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def card(hub: Hub, name: str) -> ModelCard:
    return ModelCard(hub.files(name)["README.md"].decode())


def commits(hub: Hub, name: str) -> int:
    """Apart from the one that makes the repository."""
    return len(hub.repositories["models", name].commits) - 1


def test_push_to_hub_of_the_model(hub, tmp_path):
    hub.add("user/edited", {"README.md": "---\nlicense: mit\n---\n# My words\n"})
    program = """
model = prompted.prompted_clip(torch.float32)
model.push_to_hub("user/adapter", private=True, tags=["birds"])
model.push_to_hub("user/adapter")
model.push_to_hub("user/edited")
with torch.no_grad():
    next(each for name, each in model.named_parameters() if ".jscpt_" in name).add_(1.0)
model.push_to_hub("user/adapter", revision="v2")
print(0)
"""
    run(hub, program, tmp_path)
    assert set(hub.files("user/adapter")) == ADAPTER
    assert hub.repositories["models", "user/adapter"].private
    assert (
        commits(hub, "user/adapter") == 2
    )  # with that of the branch; the second push changes nothing, not even the tags
    main, second = hub.files("user/adapter"), hub.files("user/adapter", revision="v2")
    assert {path for path in main if main[path] != second[path]} == {
        "adapter_model.safetensors",
        "adapter_model.sha256",
    }
    published = card(hub, "user/adapter")
    assert published.data.library_name == "peft" and {"jscpt", "birds"} <= set(published.data.tags)
    assert "# user/adapter" in published.text and '"user/adapter")' in published.text
    assert set(hub.files("user/edited")) == ADAPTER
    assert card(hub, "user/edited").content == "---\nlicense: mit\n---\n# My words\n"


def test_push_to_hub_of_the_trainer(hub, tmp_path):
    """What each strategy uploads; the end of all is the same."""
    program = """
for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "hub_always_push": True}
    trainer = small_run.trainer(
        place / strategy, push_to_hub=True, hub_model_id=f"user/{strategy}", hub_strategy=strategy,
        hub_private_repo=strategy == "end", hub_token="hf_owner", **saving
    )
    trainer.train()
    (place / strategy / ".unfinished-checkpoint-9").mkdir()
    (place / strategy / ".unfinished-checkpoint-9" / "optimizer.pt").write_bytes(b"0")
    trainer.evaluate()
    trainer.push_to_hub(license="mit")
    assert b"hf_owner" not in (place / strategy / "training_args.bin").read_bytes()
    assert trainer.args.hub_token == "hf_owner"
print(0)
"""
    run(hub, program, tmp_path, token=None)  # the argument `hub_token` alone
    last = {"user/end": set(), "user/every_save": set()}
    last["user/checkpoint"] = {"last-checkpoint"}
    last["user/all_checkpoints"] = {"checkpoint-2", "checkpoint-4"}
    for name, folders in last.items():
        files = hub.files(name)
        assert {path for path in files if "/" not in path} == {*ADAPTER, "scheduler_history.jsonl"}
        assert {path.partition("/")[0] for path in files if "/" in path} == folders
        published = card(hub, name)
        assert published.data.license == "mit"
        assert "| `seed` | 3 |" in published.text and "| `lower_steps` | 2 |" in published.text
        accuracies = {result.dataset_name: result.metric_value for result in published.data.eval_results}
        assert set(accuracies) == {"photo", "clipart", "sketch"}
        assert {result.dataset_split for result in published.data.eval_results} == {"validation"}
    assert hub.repositories["models", "user/end"].private
    assert not hub.repositories["models", "user/checkpoint"].private
    assert commits(hub, "user/end") == 1
    assert commits(hub, "user/every_save") == 3  # steps 2 and 4, and the end
    published = {path.split("/", 1)[1]: each for path, each in hub.files("user/checkpoint").items() if "/" in path}
    checkpoint = tmp_path / "checkpoint" / "checkpoint-4"
    whole = {str(path.relative_to(checkpoint)): path for path in checkpoint.rglob("*") if path.is_file()}
    assert published == {name: path.read_bytes() for name, path in whole.items()}  # so that a run goes on from it
    assert {"optimizer.pt", "checkpoint.json"} <= published.keys()
    assert not any(b"hf_owner" in content for name in last for content in hub.files(name).values())


def test_where_the_hub_refuses(hub, tmp_path):
    """Before training it is said at once; after training nothing is lost, and the command in the message publishes."""
    program = """
import transformers.utils.hub
options = {"push_to_hub": True, "hub_model_id": "user/late"}
early = error_of(small_run.trainer, place / "early", **{**options, "hub_model_id": "user/early"}, hub_token="hf_other")
trainer = small_run.trainer(place / "late", **options)
trainer.train()
trainer.args.hub_token = "hf_other"
refused = error_of(trainer.push_to_hub)
trainer.args.hub_token = None
transformers.utils.hub.hf_api().endpoint = "http://127.0.0.1:9"
unreachable = error_of(trainer.save_model)
(place / "late" / "checkpoint-4").mkdir()
(place / "late" / "checkpoint-4" / "optimizer.pt").write_bytes(b"0")
print(json.dumps([early, refused, unreachable]))
"""
    early, refused, unreachable = run(hub, program, tmp_path)
    assert early.startswith("`hub_model_id` 'user/early' cannot be used: ") and "401" in early
    assert "`hf auth login`" in early and "\n" not in early
    assert ("models", "user/early") not in hub.repositories
    assert "'user/late' could not be pushed to the Hub" in refused and "403" in refused
    assert "'user/late' could not be pushed to the Hub: ConnectError" in unreachable
    for message in (refused, unreachable):
        assert "\n" not in message
        assert f"Nothing is lost, all is in {tmp_path / 'late'}. Push it later with: hf upload" in message
    assert not hub.files("user/late")
    assert {path.name for path in (tmp_path / "late").iterdir()} >= ADAPTER
    command = shlex.split(re.search(r"hf upload .*", unreachable)[0])
    done = hub.run([str(Path(sys.executable).with_name("hf")), *command[1:]], tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(hub.files("user/late")) == {*ADAPTER, "scheduler_history.jsonl"}


def test_a_push_that_fails_during_training_is_announced(hub, tmp_path):
    program = """
import logging, transformers
messages = []
logger = logging.getLogger("jscpt_peft.training.publishing")
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logger.addHandler(handler)
options = {"push_to_hub": True, "hub_model_id": "user/run", "hub_strategy": "every_save"}
trainer = small_run.trainer(place / "run", save_strategy="steps", save_steps=2, **options)
trainer.args.hub_token = "hf_other"
trainer.train()
print(json.dumps([trainer.state.global_step, messages]))
"""
    steps, messages = run(hub, program, tmp_path)
    assert steps == 4
    assert any("A push to the Hub failed; training goes on. " in message and "403" in message for message in messages)
    assert (tmp_path / "run" / "checkpoint-4").is_dir()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("images"), random.Random(1)
    for task in ("photos", "scans"):
        for colour in ("red", "blue"):
            (root / task / colour).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (rng.randrange(30, 60), 40), colour).save(root / task / colour / f"{number}.png")
    return root


def train(hub: Hub, images: Path, place: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    quick = [*QUICK, "--seed", "3", "--save_strategy", "no"]
    data = ["--task_set", "folder", "--data_root", str(images), "--output_dir", str(place / "out")]
    command = [sys.executable, str(RECIPES / "train.py"), *data, *quick, "--push_to_hub", *arguments]
    return hub.run(command, home=place, **options)


def test_the_recipe_publishes_results_and_figures(hub, images, tmp_path):
    arguments = ["--hub_model_id", "user/recipe", "--hub_private_repo", "True", "--hub_token", TOKEN]
    done = train(hub, images, tmp_path, *arguments, token=None)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "Published: " in done.stdout
    output = tmp_path / "out"
    files = hub.files("user/recipe")
    assert hub.repositories["models", "user/recipe"].private
    assert commits(hub, "user/recipe") == 1
    assert ADAPTER | FIGURES | {"results.md", "results.json", "manifest.json", "scheduler_history.jsonl"} <= set(files)
    assert not {path for path in files if path.endswith((".bin", ".pt")) or "checkpoint" in path}
    for path, content in files.items():
        assert (output / path).read_bytes() == content
    published = card(hub, "user/recipe")
    table = files["results.md"].decode()
    assert table.strip() in published.text and "| photos |" in table
    for name in FIGURES:
        assert f"]({name})" in published.text
    results = json.loads(files["results.json"])["tasks"]
    accuracies = {result.dataset_name: result.metric_value for result in published.data.eval_results}
    assert {task: row["trained"] for task, row in results.items()}.items() <= accuracies.items()
    assert "on the task set `folder`, drawn with seed 3:" in published.text
    assert "| folder | folders of images | all training images |" in published.text
    assert published.data.base_model is None  # the package's own CLIP is not on the Hub
    config = json.loads(files["adapter_config.json"])
    # PEFT's own field, by which a local adapter finds its base; the recipe's tokenizer is the base's.
    assert {config.pop(name) for name in ("base_model_name_or_path", "tokenizer_name_or_path")} == {str(TINY_CLIP)}
    texts = {path: content.decode() for path, content in files.items() if not path.endswith((".png", ".safetensors"))}
    assert len(texts) >= 7
    texts["adapter_config.json"] = json.dumps(config)
    for place in (tmp_path, images, TESTS.parent, Path(sys.prefix)):
        assert [path for path, text in texts.items() if f"{place}/" in text] == []


def test_the_recipe_says_at_once_that_it_may_not_publish(hub, images, tmp_path):
    done = train(hub, images, tmp_path, "--hub_model_id", "user/recipe", token="hf_other")
    assert done.returncode == 1
    error = [line for line in done.stdout.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1 and "`hub_model_id` 'user/recipe' cannot be used" in error[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "out").glob("adapter*"))
