"""Groups and trees of tasks: what is refused, how a task joins, and what counts as shared (Eq. 5)."""

from __future__ import annotations

import copy

import oracles
import prompted
import pytest
import small_run
import torch
from peft import get_peft_model

from jscpt_peft import JSCPTConfig
from jscpt_peft.scheduling import inter_task_affinity
from jscpt_peft.training.task_gradients import Batch, shared_gramian, task_gradients

GROUPS = {"photo": "real", "clipart": "drawn", "sketch": "drawn"}
TREE = {"photo": ["all", "real"], "clipart": ["all", "drawn"], "sketch": ["all", "drawn"]}
NEW = {"class_names": ["owl"], "class_token_ids": [[oracles.TINY_SOS, 5, oracles.TINY_EOS]]}


def config(method: str, **options) -> JSCPTConfig:
    defaults = {"num_shared_tokens": 3, "num_task_tokens": 2, "prompt_init_std": 0.5}
    ids = {"class_token_ids": prompted.class_token_ids()}
    return JSCPTConfig.for_method(method, prompted.TASKS, **{**defaults, **ids, **options})


def adapted(method: str, groups: dict | None = None, **options):
    return get_peft_model(oracles.tiny_clip(), config(method, groups=groups, **options))


def test_without_groups_there_is_one_of_all_tasks():
    assert config("mmap").groups == dict.fromkeys(prompted.TASKS, "all")
    assert config("hipro").groups == {task: ["all"] for task in prompted.TASKS}
    assert config("mmap", single_task=True).groups is None is JSCPTConfig(tasks=prompted.TASKS).groups


@pytest.mark.parametrize(
    ("method", "groups", "message"),
    [
        ("mmap", {"photo": "a", "sketch": "a"}, r"`groups` says nothing of \['clipart'\]"),
        ("hipro", {**TREE, "scetch": ["all"]}, "`groups` names 'scetch', none of .*Did you mean 'sketch'"),
        ("mmap", TREE, r"`groups\['photo'\]` is \['all', 'real'\]: give the name of a group"),
        ("hipro", GROUPS, r"`groups\['photo'\]` is 'real': give the nodes from the root on"),
        ("hipro", {**TREE, "sketch": []}, r"`groups\['sketch'\]` is \[\]: give the nodes"),
        ("mmap", {**GROUPS, "sketch": " "}, r"`groups\['sketch'\]` is ' ': give the name"),
        ("mmap", {**GROUPS, "sketch": 3}, r"`groups\['sketch'\]` must be a string or a list, got 3"),
        ("hipro", {**TREE, "sketch": ["drawn"]}, "no tree: it has two roots, 'all' and, for 'sketch', 'drawn'"),
        ("hipro", {**TREE, "sketch": ["all", "real", "drawn"]}, "no tree: node 'drawn' is below 'all' for 'clipart'"),
        ("hipro", {**TREE, "sketch": ["all", "drawn", "drawn"]}, "no tree: node 'drawn' is below"),
        ("hipro", {**TREE, "sketch": ["all", "all"]}, "no tree: node 'all' is below None for 'photo'"),
    ],
)
def test_groups_that_do_not_fit_are_refused(method, groups, message):
    with pytest.raises(ValueError, match=message):
        config(method, groups=groups)


def test_groups_where_there_are_none_are_refused():
    with pytest.raises(ValueError, match=r"prompts='concatenated' has none here.*choose method 'mmap' or 'hipro'"):
        JSCPTConfig(tasks=prompted.TASKS, groups=GROUPS)
    with pytest.raises(ValueError, match="leave it out, or `single_task`"):
        config("mmap", groups=GROUPS, single_task=True)


def test_one_source_of_both_towers_and_no_words():
    alike = {"tasks": prompted.TASKS, "prompts": "kronecker", "class_token_ids": prompted.class_token_ids()}
    with pytest.raises(ValueError, match="`towers` is 'text', but prompts='kronecker' has one source for 'both'"):
        get_peft_model(oracles.tiny_clip(), JSCPTConfig(**alike, towers="text"))
    with pytest.raises(ValueError, match="`prompt_init` is 'a photo', which prompts='kronecker' does not know"):
        JSCPTConfig(**alike, prompt_init="a photo", prompt_init_token_ids=[1])


@pytest.mark.parametrize("prompts", ["kronecker", "tree"])
@pytest.mark.parametrize("name", ["num_shared_tokens", "num_task_tokens"])
def test_groups_and_tasks_have_tokens(prompts, name):
    made = JSCPTConfig(tasks=prompted.TASKS, prompts=prompts, class_token_ids=prompted.class_token_ids(), **{name: 0})
    with pytest.raises(ValueError, match=f"`{name}` is 0, but prompts='{prompts}' has tokens of groups and of tasks"):
        get_peft_model(oracles.tiny_clip(), made)


def test_a_tree_starts_from_words():
    model = adapted("hipro", TREE, prompt_init="w", prompt_init_token_ids=[4, 9])
    words = model.get_base_model().text_model.embeddings.token_embedding.weight[[4, 9, 4]]
    nodes = model.task_adapter.prompts.group_text
    assert nodes.shape[:2] == (3, 3) and torch.equal(nodes, words.expand_as(nodes))


# ---- a new task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "groups", "options", "joined"),
    [
        ("mmap", GROUPS, {"group": "drawn"}, "drawn"),
        ("mmap", GROUPS, {"init_from": "photo"}, "real"),
        ("mmap", None, {}, "all"),
        ("hipro", TREE, {"group": ["all"]}, ["all"]),
        ("hipro", TREE, {"init_from": "sketch"}, ["all", "drawn"]),
    ],
)
def test_a_new_task_joins(method, groups, options, joined):
    model = adapted(method, groups)
    before = model.prompt_tokens("text")
    model.add_task("birds", **NEW, **options)
    assert model.active_jscpt_config.groups == {**config(method, groups=groups).groups, "birds": joined}
    after = model.prompt_tokens("text")
    assert torch.equal(after[:3], before)
    like = list(GROUPS).index(options.get("init_from", "sketch"))
    assert torch.equal(after[3, :, :3], before[like, :, :3])
    assert torch.equal(after[3, :, -2:], before[like, :, -2:]) == ("init_from" in options)


@pytest.mark.parametrize(
    ("method", "groups", "options", "message"),
    [
        ("mmap", GROUPS, {}, r"`group` is missing: give the one that 'birds' joins, as one of \['real', 'drawn'\]"),
        ("mmap", GROUPS, {"group": "drawm"}, "`group` is 'drawm': a new task joins .*Did you mean 'drawn'"),
        ("mmap", GROUPS, {"group": 3}, "`group` must be .* got 3"),
        ("hipro", TREE, {"group": ["drawn"]}, "no tree: it has two roots"),
        ("hipro", TREE, {"group": "drawn"}, r"`groups\['birds'\]` is 'drawn': give the nodes"),
        ("jscpt", None, {"group": "drawn"}, "`group` is 'drawn', but the adapter has no groups"),
    ],
)
def test_a_task_that_cannot_join_changes_nothing(method, groups, options, message):
    model = adapted(method, groups)
    before, stored = copy.deepcopy(model.state_dict()), copy.deepcopy(model.active_jscpt_config)
    with pytest.raises(ValueError, match=message):
        model.add_task("birds", **NEW, **options)
    assert model.active_jscpt_config == stored
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "groups"), [("mmap", GROUPS), ("hipro", TREE)])
def test_only_what_several_tasks_see_is_shared(method, groups):
    """The Gramian of Eq. 5 is that of the gradients, a backward per task, of the groups of more than one task."""
    model = adapted(method, groups)
    batch, prompts = prompted.batch(model), model.task_adapter.prompts
    losses = model.classify(*batch).task_losses
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, prompts.shared(), retain_graph=True)
        several = [0, 2] if method == "hipro" else [1]  # in the order: all, real, drawn; without groups of one
        rows.append(torch.cat([gradient[several].flatten() for gradient in gradients]))
    rows = torch.stack(rows)
    means = task_gradients(model, Batch(*batch))[0].means()
    gramian = shared_gramian(model, means.gradients)
    torch.testing.assert_close(gramian, rows @ rows.T, atol=1e-12, rtol=1e-10)
    affinity = inter_task_affinity(rows)
    assert affinity[1, 2] != 0 and (gramian[0].any() and affinity[0, 1] != 0) == (method == "hipro")


@pytest.mark.parametrize(("prompts", "groups"), [("kronecker", GROUPS), ("tree", TREE)])
def test_scheduled_by_jscpt_with_its_masks_and_learned_weights(tmp_path, prompts, groups):
    made = prompted.prompted_clip(torch.float32, prompts=prompts, groups=groups)
    run = small_run.trainer(tmp_path, made, max_steps=1, lower_steps=1)
    start = small_run.trained_parameters(run)
    run.train()
    assert not any(torch.equal(start[name], each) for name, each in small_run.trained_parameters(run).items())
    for each in run.weighting.learned().values():
        assert each.isfinite().all() and (each != 1).any()
