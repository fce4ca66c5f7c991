"""The figure of grouped tasks: a dot per prompt that several tasks share, and lines that do not cross."""

from __future__ import annotations

import pytest
import torch

from jscpt_peft.evaluation.dendrogram import _figure, draw_dendrogram
from jscpt_peft.scheduling import agglomerate, task_groups, task_tree

NAMES = [f"task {number}" for number in range(8)]


@pytest.fixture
def merges():
    gradients = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    gradients = torch.nn.functional.normalize(gradients, dim=1)
    return agglomerate(gradients @ gradients.T)


def test_a_dot_per_shared_prompt_and_every_cluster_in_one_piece(merges, tmp_path):
    tree = task_tree(merges, NAMES, 4)
    (axes,) = _figure(merges, tree).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    nodes = {node for path in tree.values() for node in path}
    assert len(dots) == len(nodes) > 3
    distances = {merge.distance for merge in merges}
    assert {line.get_xdata()[0] for line in dots} <= distances
    order = [label.get_text() for label in axes.get_yticklabels()]
    for node in nodes:
        rows = [order.index(task) for task, path in tree.items() if node in path]
        assert max(rows) - min(rows) == len(rows) - 1
    assert draw_dendrogram(tmp_path / "tree.png", merges, tree).read_bytes().startswith(b"\x89PNG")


def test_a_task_alone_has_no_dot(merges):
    (axes,) = _figure(merges, task_groups(merges, NAMES, 8)).axes
    assert not [line for line in axes.lines if line.get_marker() == "o"]
    (axes,) = _figure([], {"one": "all"}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one"]
