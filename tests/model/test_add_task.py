"""A task more on a trained adapter, and training it alone by a plain loop: nothing else moves by a single bit."""

from __future__ import annotations

import copy
import json

import oracles
import prompted
import pytest
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

NEW = ["owl", "hen", "emu", "kiwi", "rook"]  # more classes than any other task has
NEW_IDS = [[oracles.TINY_SOS, *range(3 + label, 8 + 2 * label), oracles.TINY_EOS] for label in range(len(NEW))]

# Every kind of adapter: what a task has of its own differs.
VARIANTS = {
    "depth": {"prompt_depth": 1},
    "text": {"towers": "text", "intervention": "none"},
    "shared intervention": {"intervention_shared": True},
    "one task": {"tasks": {"photo": ["cat", "dog"]}},
    "fixed masks": {"learn_masks": False},
    "no task tokens": {"num_task_tokens": 0},
    "no prompts": {"num_task_tokens": 0, "num_shared_tokens": 0},
}


def add(model, **options):
    model.add_task("birds", NEW, **{"class_token_ids": NEW_IDS, **options})


def tensors(model):
    """What an adapter's file holds."""
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


def predictions(model, batch):
    """All that a user may read of a mixed batch: `classify` with and without gradient, and every task by itself.

    Where losses are to be learned from, the texts of all tasks go through the tower together: equal up to rounding.
    """
    pixels, task_ids, labels = batch
    classes = [len(names) for names in model.active_jscpt_config.tasks.values()][: int(task_ids.max()) + 1]
    found = []
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            output = model.classify(pixels, task_ids, None if gradient else labels)
        found += [output.logits[:, : max(classes)], output.image_embeds, output.selected_embeds]
        found += [] if gradient else [output.loss]
        found += [output.class_embeds[task, :count] for task, count in enumerate(classes)]
    for task in model.task_names[: len(classes)]:
        model.set_task(task)
        found.append(model.get_image_features(pixel_values=pixels).pooler_output)
        found.append(model.get_text_features(input_ids=torch.tensor(NEW_IDS[:1])).pooler_output)
    model.set_task(None)
    return [each.detach() for each in found]


def equal(some, others):
    if isinstance(some, dict):
        assert some.keys() == others.keys()
        some, others = some.values(), others.values()
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


# ---- growing --------------------------------------------------------------------------------------------------------


def test_start_of_a_task():
    model, again = (prompted.prompted_clip(num_task_tokens=6) for _ in range(2))
    add(model)
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
    output = model.classify(prompted.batch(model)[0], 3)
    torch.testing.assert_close(output.selected_embeds, output.image_embeds)  # as before any training


def test_other_adapters_stay(tmp_path, model, batch):
    config = prompted.config(num_task_tokens=1)
    model.add_adapter("one", config)
    model.add_adapter("two", config)  # of the same object
    model.set_adapter("two")
    two = predictions(model, batch)
    model.set_adapter("one")
    add(model)
    model.train_only("birds")
    model.set_adapter("two")
    assert model.task_names == list(prompted.TASKS) and model.trained_task is None
    assert equal(predictions(model, batch), two)
    model.set_adapter("one")
    assert model.task_names == [*prompted.TASKS, "birds"] and model.trained_task == "birds"
    model.save_pretrained(tmp_path)
    for folder, added in {".": [], "one": ["birds"], "two": []}.items():
        stored = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert stored["task_order"] == [*prompted.TASKS, *added]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "photo"}, "`name` is 'photo'.*none of the adapter's tasks"),
        ({"name": ""}, "`name` is ''"),
        ({"class_names": []}, r"`class_names` has no class names"),
        ({"class_names": "owl"}, "`class_names` is 'owl': give a list"),
        ({"class_names": ["owl", "owl"]}, r"names \['owl'\] more than once"),
        ({"class_token_ids": NEW_IDS}, "has 5 entries for 2 classes"),
        ({"class_token_ids": [NEW_IDS[0], [1, 2, 3]]}, "class 'hen' in task 'birds' must be"),
        ({"class_token_ids": [NEW_IDS[0], [NEW_IDS[0][0], *[5] * 72, NEW_IDS[0][-1]]]}, "'hen'.*'birds' is too long"),
        ({"class_token_ids": None}, "`tokenizer_name_or_path` is not set"),
        ({"init_from": "foto"}, "`init_from` 'foto' is not one.*photo"),
    ],
)
def test_what_cannot_be_added_leaves_the_adapter_as_it_was(model, batch, options, message):
    before, found, config = tensors(model), predictions(model, batch), copy.deepcopy(model.active_jscpt_config)
    given = {"name": "birds", "class_names": ["owl", "hen"], "class_token_ids": NEW_IDS[:2], **options}
    with pytest.raises(ValueError, match=message):
        model.add_task(**given)
    assert equal(tensors(model), before) and equal(predictions(model, batch), found)
    assert model.active_jscpt_config == config


def test_prompts_that_are_not_there_cannot_be_copied():
    with pytest.raises(ValueError, match="`init_from` is 'photo', but the adapter's tasks have no prompts"):
        add(prompted.prompted_clip(num_task_tokens=0), init_from="photo")


# ---- training one task alone ----------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def plain_training(model, optimizer="sgd", steps=3):
    """A user's own loop, on images of all tasks; the losses of each step."""
    chosen = OPTIMIZERS[optimizer]([parameter for parameter in model.parameters() if parameter.requires_grad])
    batch, losses = prompted.batch(model, per_task=3), []
    for _ in range(steps):
        output = model.classify(*batch)
        chosen.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        losses.append(output.task_losses.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [*((options, "sgd") for options in VARIANTS.values()), ({}, "adamw")],
    ids=[*VARIANTS, "adamw"],
)
def test_adding_and_training_one_task_moves_nothing_else(tmp_path, options, optimizer):
    model = prompted.prompted_clip(**options)
    made, earlier = tensors(model), prompted.batch(model)
    predicted = predictions(model, earlier)
    add(model)
    assert equal(predictions(model, earlier), predicted)
    before, whole, config = tensors(model), prompted.batch(model), model.active_jscpt_config
    base = {name: each.clone() for name, each in model.state_dict().items() if ".jscpt_" not in name}
    grown = {name for name in made if len(before[name]) > len(made[name])}
    model.train_only("birds")
    assert model.trained_task == "birds" and equal(tensors(model), before)
    losses = plain_training(model, optimizer)
    assert torch.equal(losses[0, :-1], losses[-1, :-1]) and losses[-1, -1] < losses[0, -1]
    after = tensors(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in grown if config.learn_masks or not name.endswith("mask")}
    assert equal({name: each[: len(made[name])] for name, each in after.items()}, made)
    assert equal(predictions(model, earlier), predicted)
    assert equal({name: model.state_dict()[name] for name in base}, base)
    model.save_pretrained(tmp_path)
    trained = predictions(model, whole)
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    assert equal(predictions(loaded, whole), trained) and loaded.task_names == [*config.tasks]
    assert (config.tasks["birds"], loaded.active_jscpt_config.class_token_ids["birds"]) == (NEW, NEW_IDS)
    model.train_only(None)
    assert model.trained_task is None and equal(tensors(model), after) and equal(predictions(model, whole), trained)


def test_an_earlier_optimizer_finds_nothing_to_move(model, batch):
    optimizer = OPTIMIZERS["adamw"]([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.classify(*batch).loss.backward()
    before = tensors(model)
    model.train_only("clipart")
    optimizer.step()
    assert equal(tensors(model), before)


def test_tasks_one_after_the_other(model):
    losses = []
    for task in ("photo", "sketch", "sketch"):
        model.train_only(task)
        losses.append(plain_training(model))
        if len(losses) == 2:
            add(model)  # while another is trained alone
            assert model.trained_task == "sketch" and len(model.prompt_tokens("text")) == 4
    trained = [0, 2, 2]
    for task, each in zip(trained, losses, strict=True):
        assert each[-1, task] < each[0, task]
        others = torch.arange(each.shape[1]) != task
        assert torch.equal(each[0, others], each[-1, others])
    assert losses[1][0, 0] < losses[0][-1, 0]  # what the first has learned stays


def test_a_loaded_adapter_takes_gradients_where_it_is_to_be_trained(tmp_path, model):
    def trainable():
        return {name: len(p) for name, p in model.named_parameters() if p.requires_grad}

    model.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    add(model)
    assert not trainable()
    model.train_only("birds")
    trained = trainable()
    assert trained and all(".rows." in name and length == 1 for name, length in trained.items())
    # What PEFT does to gradients leaves it at that.
    model.set_adapter("default")
    model.base_model.set_requires_grad("default")
    model.load_adapter(tmp_path, "further", is_trainable=True)
    model.delete_adapter("further")
    assert trainable() == trained
    model.base_model.set_requires_grad("default", False)
    assert not trainable()
    model.train_only(None)
    assert trainable().keys() == {name for name, _ in model.named_parameters() if ".jscpt_" in name}


def test_weights_loaded_into_an_adapter_reach_the_task_that_is_trained(tmp_path, model, batch):
    model.train_only("clipart")
    plain_training(model)
    model.save_pretrained(tmp_path)
    saved = predictions(model, batch)
    plain_training(model)
    assert not equal(predictions(model, batch), saved)
    for each in (model, copy.deepcopy(model)):
        result = each.load_adapter(tmp_path, "default", is_trainable=True)
        assert not result.missing_keys and not result.unexpected_keys
        assert equal(predictions(each, batch), saved) and each.trained_task == "clipart"


def test_there_must_be_something_to_train():
    model = prompted.prompted_clip(num_task_tokens=0, intervention="none")
    for task, message in {"photo": "has no parameters of its own", "foto": "is not one"}.items():
        with pytest.raises(ValueError, match=f"`task` '{task}' {message}"):
            model.train_only(task)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_file_with_fewer_tasks_is_refused_as_ever(model):
    """Also where one task is trained alone: torch's own message, of the stack."""
    small = copy.deepcopy(model.state_dict())
    add(model)
    model.train_only("birds")
    with pytest.raises(RuntimeError, match=r"size mismatch for .*jscpt_adapters.default.prompts.vision_task"):
        model.load_state_dict(small)
