"""LoRA and the linear probe of the recipes: they start as zero-shot CLIP, learn what they say, and fill the table."""

from __future__ import annotations

import json

import pytest
import torch
import train
from evaluated_model import zero_shot_model
from outside import LinearProbe, Lora
from paths import TINY_CLIP
from recipe_runs import TASKS, fails, on_folder
from safetensors.torch import load_file
from transformers import CLIPModel

from jscpt_peft.data import load_task_set

METHODS = {"clip_lora": Lora, "linear_probe": LinearProbe}
every = pytest.mark.parametrize("name", METHODS)


def command(images, output, *more):
    short = ["--max_steps", "2", "--per_device_train_batch_size", "3", "--disable_tqdm", "true"]
    return on_folder(images, output, "--eval_strategy", "no", *short, *more)


@every
def test_starts_as_zero_shot_clip_and_learns_nothing_else(images, name):
    task_set = load_task_set("folder", images, seed=3)
    clips = [CLIPModel.from_pretrained(TINY_CLIP) for _ in range(2)]
    zero_shot = zero_shot_model(clips[0], str(TINY_CLIP), task_set)
    model = METHODS[name](clips[1], str(TINY_CLIP), task_set)
    before = {key: each.clone() for key, each in model.state_dict().items()}
    batch = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 1, 0]), torch.tensor([0, 2, 1, 1])
    with torch.no_grad():
        expected = zero_shot.classify(*batch[:2]).logits
        torch.testing.assert_close(model.eval().classify(*batch[:2]).logits, expected, atol=1e-4, rtol=1e-5)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    output = model.train()(*batch)
    losses = torch.nn.functional.cross_entropy(output["logits"], batch[2], reduction="none")
    torch.testing.assert_close(output["loss"], losses[[0, 3]].mean() + losses[[1, 2]].mean())
    output["loss"].backward()
    optimizer.step()
    moved = {key for key, each in model.state_dict().items() if not torch.equal(each, before[key])}
    if name == "clip_lora":
        scales = [each.scaling["default"] for each in model.modules() if hasattr(each, "lora_A")]
        assert scales == pytest.approx([2**-0.5] * len(scales))  # α/√r of its authors' code
        assert moved and all(".lora_B." in key for key in moved)  # A has no gradient while B is zero
        towers = clips[1].config.vision_config, clips[1].config.text_config
        count = sum(3 * 2 * 2 * each.hidden_size * each.num_hidden_layers for each in towers)  # q, k, v; A and B
    else:
        assert moved == {"weight", "bias"}
        count = 3 * (clips[1].config.projection_dim + 1)  # the tasks have the same three classes
    assert model.get_nb_trainable_parameters()[0] == count


@every
def test_fills_the_table(images, name, tmp_path, capsys):
    train.main(command(images, tmp_path / "out", "--method", name))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["tasks"]) == set(TASKS)
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    count = sum(each.numel() for each in weights.values())
    assert f"trainable params: {count:,d} ||" in capsys.readouterr().out
    assert all(("lora" in key) == (name == "clip_lora") for key in weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["clip_lora", "--num_shared_tokens", "4"],
            "`num_shared_tokens` is 4, but method 'clip_lora' does not know it",
        ),
        (
            ["linear_probe", "--lora_rank", "4"],
            "method 'linear_probe' does not know it: leave it out, or choose 'clip_l",
        ),
        (["coop", "--lora_rank", "4"], "`lora_rank` is 4, but method 'coop' does not know it"),
        (["clip_lorra"], "Did you mean 'clip_lora'?"),
        (["clip_lora", "--single_task", "true"], "`single_task` is True, but method 'clip_lora' does not know it"),
        (["clip_lora", "--split", "base_to_new"], "`split` 'base_to_new' does not go with method 'clip_lora'"),
        (["linear_probe", "--weighting", "uw"], "`weighting` 'uw' does not go with method 'linear_probe'"),
    ],
)
def test_mistakes_are_told_in_a_line(images, tmp_path, capsys, words, message):
    assert message in fails(capsys, train.main, *command(images, tmp_path / "x", "--method", *words))
