"""A task more on a trained adapter, and training it alone by a plain loop: nothing else moves by a single bit."""

from __future__ import annotations

import copy
import json

import oracles
import prompted
import pytest
import torch
from paths import TINY_CLIP
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPModel

from jscpt_peft import JSCPTConfig

NEW = ["owl", "hen", "emu", "kiwi", "rook"]  # more classes than any other task has
NEW_IDS = [[oracles.TINY_SOS, *range(3 + label, 8 + 2 * label), oracles.TINY_EOS] for label in range(len(NEW))]

# Every kind of adapter: what a task has of its own differs.
VARIANTS = {
    "whole": {},
    "depth": {"prompt_depth": 1},
    "vision": {"towers": "vision"},
    "text": {"towers": "text"},
    "no intervention": {"intervention": "none"},
    "shared intervention": {"intervention_shared": True},
    "shared intervention, one task": {"intervention_shared": True, "tasks": {"photo": ["cat", "dog"]}},
    "one task": {"tasks": {"photo": ["cat", "dog"]}},
    "fixed masks": {"learn_masks": False},
    "no task tokens": {"num_task_tokens": 0},
    "no shared tokens": {"num_shared_tokens": 0},
    "no prompts": {"num_task_tokens": 0, "num_shared_tokens": 0},
}
variants = pytest.mark.parametrize("options", list(VARIANTS.values()), ids=list(VARIANTS))


def add(model, **options):
    model.add_task("birds", NEW, **{"class_token_ids": NEW_IDS, **options})


def adapter_file(model, folder):
    model.save_pretrained(folder)
    return load_file(folder / "adapter_model.safetensors")


def of_earlier_tasks(tensors, num_tasks, config):
    """The tensors of a file without a task that was added as number `num_tasks`."""
    by_task = {"task", "mask"}
    if not config.intervention_shared:
        by_task |= {f"{mlp}_{part}" for mlp in ("inner", "outer") for part in ("down", "down_bias", "up", "up_bias")}
    return {
        name: tensor[:num_tasks] if name.rpartition(".")[2] in by_task else tensor for name, tensor in tensors.items()
    }


def predictions(model, batch):
    """All that a user may read of a mixed batch: `classify` with and without gradient, and every task by itself.

    Where losses are to be learned from, the texts of all tasks go through the tower together: equal up to rounding.
    """
    pixels, task_ids, labels = batch
    found = []
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            output = model.classify(pixels, task_ids, None if gradient else labels)
        classes = [len(names) for names in model.active_jscpt_config.tasks.values()][: int(task_ids.max()) + 1]
        found += [output.logits[:, : max(classes)], output.image_embeds, output.selected_embeds]
        found += [] if gradient else [output.loss]
        found += [output.class_embeds[task, :count] for task, count in enumerate(classes)]
    for task in model.task_names[: int(task_ids.max()) + 1]:
        model.set_task(task)
        found.append(model.get_image_features(pixel_values=pixels).pooler_output)
        found.append(model.get_text_features(input_ids=torch.tensor(NEW_IDS[:1])).pooler_output)
    model.set_task(None)
    return [each.detach() for each in found]


def equal(some, others):
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@variants
def test_earlier_tasks_predict_the_same_bits(options, dtype):
    model = prompted.prompted_clip(dtype, **options)
    batch = prompted.batch(model)
    before = predictions(model, batch)
    add(model)
    assert equal(predictions(model, batch), before)


@variants
def test_saved_and_loaded_with_its_task(tmp_path, options):
    model = prompted.prompted_clip(**options)
    num_tasks = len(model.task_names)
    before = adapter_file(model, tmp_path / "before")
    add(model)
    after = adapter_file(model, tmp_path / "after")
    earlier = of_earlier_tasks(after, num_tasks, model.active_jscpt_config)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], earlier[name]) for name in before)
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path / "after")
    assert loaded.task_names == [*list(prompted.TASKS)[:num_tasks], "birds"]
    assert loaded.active_jscpt_config.tasks["birds"] == NEW
    assert loaded.active_jscpt_config.class_token_ids["birds"] == NEW_IDS
    assert equal(predictions(loaded, prompted.batch(loaded)), predictions(model, prompted.batch(model)))


def test_the_new_task_computes_what_the_oracle_does():
    model = prompted.prompted_clip()
    add(model)
    pixels, task_ids, labels = prompted.batch(model)
    losses = model.classify(pixels, task_ids, labels).task_losses
    torch.testing.assert_close(losses, prompted.oracle_losses(model, pixels, task_ids, labels), atol=1e-10, rtol=0)


def test_start_of_a_task():
    model = prompted.prompted_clip(num_task_tokens=6)
    add(model)
    again = prompted.prompted_clip(num_task_tokens=6)
    again.add_task("fish", ["eel"], [NEW_IDS[0]])  # what was added before does not matter
    add(again)
    views, twice = model.task_parameters(), again.task_parameters()
    for name, view in views.items():
        assert torch.equal(view[3], twice[name][4])
    for tower in ("vision", "text"):
        start = views[tower][3, :, 3:]
        assert float(start.detach().std()) == pytest.approx(0.5, rel=0.25)
        assert all(not torch.equal(start, views[tower][task, :, 3:]) for task in range(3))
        assert not torch.equal(start, twice[tower][3, :, 3:])  # another name, other numbers
    assert not views["mask"][3].any()
    assert not any(views[f"{mlp}_up"][3].any() for mlp in ("inner", "outer"))
    pixels, _, _ = prompted.batch(model)
    output = model.classify(pixels, 3)
    torch.testing.assert_close(output.selected_embeds, output.image_embeds)  # as before any training


def test_start_from_another_task():
    model = prompted.prompted_clip()
    add(model, init_from="clipart")
    views = model.task_parameters()
    for tower in ("vision", "text"):
        assert torch.equal(views[tower][3], views[tower][1])
        assert not torch.equal(views[tower][3], views[tower][0])
    assert not views["mask"][3].any()


def test_class_texts_are_tokenised_as_when_the_adapter_was_made(tmp_path):
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    tasks = {"art": ["alarm clock", "bed"], "clipart": ["bed"]}
    options = {"class_template": "a drawing of a {}.", "prompt_depth": 1, "num_shared_tokens": 2, "num_task_tokens": 2}
    get_peft_model(clip, JSCPTConfig(tasks=tasks, **options)).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), tmp_path)
    model.add_task("sketch", ["bed", "alarm clock"])
    ids = model.active_jscpt_config.class_token_ids
    assert ids["sketch"] == [ids["art"][1], ids["art"][0]]
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["task_order"] == ["art", "clipart", "sketch"]
    assert stored["class_token_ids"]["sketch"] == ids["sketch"]


def test_kept_class_features_follow():
    model = prompted.prompted_clip()
    with torch.no_grad():
        before = model.class_embeds()
        add(model)
        after = model.class_embeds()
        model.add_task("fish", ["eel"], [NEW_IDS[0]])
        assert model.class_embeds().shape == (5, 5, before.shape[-1])
    assert after.shape == (4, 5, before.shape[-1]) and after[3].any()


def test_other_adapters_stay(tmp_path):
    config = JSCPTConfig(tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids(), num_shared_tokens=1)
    model = prompted.prompted_clip()
    model.add_adapter("one", config)
    model.add_adapter("two", config)  # of the same object
    model.set_adapter("two")
    batch = prompted.batch(model)
    two = predictions(model, batch)
    model.set_adapter("one")
    add(model)
    model.train_only("birds")
    model.set_adapter("two")
    assert model.task_names == list(prompted.TASKS) and model.trained_task is None
    assert equal(predictions(model, batch), two)
    model.set_adapter("one")
    assert model.task_names == [*prompted.TASKS, "birds"] and model.trained_task == "birds"
    model.set_adapter("default")
    assert model.task_names == list(prompted.TASKS)
    model.save_pretrained(tmp_path)
    orders = {
        name: json.loads((tmp_path / folder / "adapter_config.json").read_text())["task_order"]
        for name, folder in {"default": ".", "one": "one", "two": "two"}.items()
    }
    assert orders == {"default": list(prompted.TASKS), "one": [*prompted.TASKS, "birds"], "two": list(prompted.TASKS)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "photo"}, "`name` is 'photo'.*none of the adapter's tasks"),
        ({"name": ""}, "`name` is ''"),
        ({"class_names": []}, r"`tasks\['birds'\]` has no class names"),
        ({"class_names": "owl"}, "`class_names` is the text 'owl'"),
        ({"class_names": ["owl", "owl"]}, r"names \['owl'\] more than once"),
        ({"class_token_ids": NEW_IDS}, "has 5 entries for 2 classes"),
        ({"class_token_ids": [NEW_IDS[0], [1, 2, 3]]}, "class 'hen' in task 'birds' must be"),
        ({"class_token_ids": [NEW_IDS[0], [NEW_IDS[0][0], *[5] * 72, NEW_IDS[0][-1]]]}, "'hen'.*'birds' is too long"),
        ({"class_token_ids": None}, "`tokenizer_name_or_path` is not set"),
        ({"init_from": "foto"}, "`init_from` 'foto' is not one.*photo"),
    ],
)
def test_what_cannot_be_added_leaves_the_adapter_as_it_was(tmp_path, options, message):
    model = prompted.prompted_clip()
    before, batch = adapter_file(model, tmp_path / "before"), prompted.batch(model)
    found, config = predictions(model, batch), copy.deepcopy(model.active_jscpt_config)
    given = {"name": "birds", "class_names": ["owl", "hen"], "class_token_ids": NEW_IDS[:2], **options}
    with pytest.raises(ValueError, match=message):
        model.add_task(**given)
    after = adapter_file(model, tmp_path / "after")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.active_jscpt_config == config and equal(predictions(model, batch), found)


def test_prompts_that_are_not_there_cannot_be_copied():
    with pytest.raises(ValueError, match="`init_from` is 'photo', but the adapter's tasks have no prompts"):
        add(prompted.prompted_clip(num_task_tokens=0), init_from="photo")


# ---- training only it -----------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def plain_training(model, optimizer, steps=3):
    """A user's own loop, on images of all tasks; the losses of each step."""
    chosen = OPTIMIZERS[optimizer]([parameter for parameter in model.parameters() if parameter.requires_grad])
    pixels, task_ids, labels = prompted.batch(model, per_task=3)
    losses = []
    for _ in range(steps):
        output = model.classify(pixels, task_ids, labels)
        chosen.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        losses.append(output.task_losses.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@variants
def test_plain_training_of_one_task_moves_nothing_else(tmp_path, options, optimizer):
    model = prompted.prompted_clip(**options)
    num_tasks, earlier_batch = len(model.task_names), prompted.batch(model)
    predicted = predictions(model, earlier_batch)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".jscpt_" not in name}
    add(model)
    config = model.active_jscpt_config
    if not config.num_task_tokens and config.intervention == "none":
        pytest.skip("a task has nothing of its own")
    before = adapter_file(model, tmp_path / "before")
    model.train_only("birds")
    assert model.trained_task == "birds"
    same = adapter_file(model, tmp_path / "same")
    assert same.keys() == before.keys() and all(torch.equal(same[name], before[name]) for name in same)
    losses = plain_training(model, optimizer)
    torch.testing.assert_close(losses[0, :num_tasks], losses[-1, :num_tasks], atol=0, rtol=0)
    assert losses[-1, num_tasks] < losses[0, num_tasks]
    after = adapter_file(model, tmp_path / "after")
    assert after.keys() == before.keys()
    here, there = (of_earlier_tasks(tensors, num_tasks, config) for tensors in (before, after))
    assert all(torch.equal(here[name], there[name]) for name in here)
    moved = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert {"task"} & moved or not config.num_task_tokens
    assert ("mask" in moved) == (config.learn_masks and config.intervention != "none")
    assert ("inner_up" in moved) == (config.intervention != "none" and not config.intervention_shared)
    assert equal(predictions(model, earlier_batch), predicted)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in base.items())
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path / "after")
    whole = prompted.batch(model)
    assert equal(predictions(loaded, whole), predictions(model, whole))
    model.train_only(None)
    assert model.trained_task is None
    assert equal(predictions(model, whole), predictions(loaded, whole))
    undone = adapter_file(model, tmp_path / "undone")
    assert all(torch.equal(undone[name], after[name]) for name in undone)


def test_an_earlier_optimizer_finds_nothing_to_move(tmp_path):
    model = prompted.prompted_clip()
    optimizer = OPTIMIZERS["adamw"]([parameter for parameter in model.parameters() if parameter.requires_grad])
    pixels, task_ids, labels = prompted.batch(model)
    model.classify(pixels, task_ids, labels).loss.backward()
    before = adapter_file(model, tmp_path / "before")
    model.train_only("clipart")
    optimizer.step()
    after = adapter_file(model, tmp_path / "after")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tasks_one_after_the_other():
    model = prompted.prompted_clip()
    model.train_only("photo")
    first = plain_training(model, "sgd")
    model.train_only("sketch")
    second = plain_training(model, "sgd")
    assert torch.equal(first[-1, 1], second[-1, 1])
    assert first[-1, 0] < first[0, 0] and first[-1, 0] > second[0, 0] and torch.equal(second[0, 0], second[-1, 0])
    assert torch.equal(first[0, 2], first[-1, 2]) and second[-1, 2] < second[0, 2]
    add(model)  # while another is trained alone
    assert model.trained_task == "sketch"
    with torch.no_grad():
        assert len(model.prompt_tokens("text")) == 4
    third = plain_training(model, "sgd")
    assert torch.equal(third[0, 3], third[-1, 3]) and third[-1, 2] < third[0, 2]


def test_a_loaded_adapter_takes_gradients_where_it_is_to_be_trained(tmp_path):
    prompted.prompted_clip().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    add(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.train_only("birds")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert shapes and all(".rows." in name and shape[0] == 1 for name, shape in shapes.items())
    trained = set(shapes)
    # What PEFT does to gradients leaves it at that.
    model.set_adapter("default")
    model.base_model.set_requires_grad("default")
    model.load_adapter(tmp_path, "further", is_trainable=True)
    model.delete_adapter("further")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    model.base_model.set_requires_grad("default", False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.train_only(None)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if ".jscpt_" in name}


def test_weights_loaded_into_an_adapter_reach_the_task_that_is_trained(tmp_path):
    model = prompted.prompted_clip()
    model.train_only("clipart")
    plain_training(model, "sgd")
    model.save_pretrained(tmp_path)
    saved, batch = predictions(model, prompted.batch(model)), prompted.batch(model)
    plain_training(model, "sgd")
    assert not equal(predictions(model, batch), saved)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        result = each.load_adapter(tmp_path, "default", is_trainable=True)
        assert not result.missing_keys and not result.unexpected_keys
        assert equal(predictions(each, batch), saved)
        assert each.trained_task == "clipart"


def test_there_must_be_something_to_train():
    model = prompted.prompted_clip(num_task_tokens=0, intervention="none")
    with pytest.raises(ValueError, match="`task` 'photo' has no parameters of its own"):
        model.train_only("photo")
    assert any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="`task` 'foto' is not one"):
        model.train_only("foto")


def test_a_file_with_fewer_tasks_is_refused_as_ever():
    """Also where one task is trained alone: torch's own message, of the stack."""
    small = prompted.prompted_clip().state_dict()
    model = prompted.prompted_clip()
    model.add_task("birds", NEW, class_token_ids=NEW_IDS)
    model.train_only("birds")
    with pytest.raises(RuntimeError, match=r"size mismatch for .*jscpt_prompts.default.task"):
        model.load_state_dict(small)
