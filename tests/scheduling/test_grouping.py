"""Groups and trees come out as they were put in."""

from __future__ import annotations

import itertools
from math import cos, radians

import pytest
import torch

from jscpt_peft.scheduling.grouping import Merge, agglomerate, task_groups, task_tree

NAMES = ["a", "b", "c", "d", "e"]


def cosines(*degrees: float) -> torch.Tensor:
    """Of directions in the plane."""
    return torch.tensor([[cos(radians(one - other)) for other in degrees] for one in degrees])


def test_merges_are_those_of_average_linkage_written_out():
    """Against the definition: at each step the pair of clusters with the least mean distance over pairs of tasks."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        gradients = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator, dtype=torch.float64), dim=1)
        matrix, clusters = gradients @ gradients.T, [{task} for task in range(6)]
        for first, second, distance in agglomerate(matrix):
            means = {
                frozenset(map(frozenset, pair)): (1 - matrix[[*pair[0]]][:, [*pair[1]]]).mean().item()
                for pair in itertools.combinations(clusters, 2)
            }
            assert distance == pytest.approx(min(means.values()))
            assert distance == pytest.approx(means[frozenset({frozenset(first), frozenset(second)})])
            clusters = [each for each in clusters if each not in ({*first}, {*second})] + [{*first, *second}]
        assert clusters == [set(range(6))]


def test_directions_in_two_bundles_are_two_groups():
    merges = agglomerate(cosines(0, 90, 5, 100, 10))
    expected = {"a": "a+c+e", "b": "b+d", "c": "a+c+e", "d": "b+d", "e": "a+c+e"}
    assert task_groups(merges, NAMES) == expected
    assert list(task_groups(merges, NAMES)) == NAMES
    assert task_groups(merges, NAMES, 1) == dict.fromkeys(NAMES, "all")
    assert task_groups(merges, NAMES, 5) == {name: name for name in NAMES}


def test_the_number_of_groups_is_where_the_distance_jumps():
    merges = agglomerate(cosines(0, 3, 80, 84, -80))
    assert task_groups(merges, NAMES) == {"a": "a+b", "b": "a+b", "c": "c+d", "d": "c+d", "e": "e"}
    assert set(task_groups(merges, NAMES, 2).values()) == {"a+3 more", "e"}


def test_trees():
    merges = agglomerate(cosines(0, 3, 80, 84, -80))
    levels = {number: task_tree(merges, NAMES, number) for number in (1, 3)}
    assert levels[1] == {name: ["all"] for name in NAMES}
    assert levels[3] == {
        "a": ["all", "a+3 more", "a+b"],
        "b": ["all", "a+3 more", "a+b"],
        "c": ["all", "a+3 more", "c+d"],
        "d": ["all", "a+3 more", "c+d"],
        "e": ["all"],
    }
    assert task_tree(merges, NAMES)["c"] == ["all", "c+d"]  # two levels
    assert task_tree(merges, NAMES, 4)["a"] == ["all", "a+3 more", "a+b"]  # what stays together is one node


@pytest.mark.parametrize("count", [1, 2])
def test_few_tasks_are_one_group_of_one_node(count):
    merges = agglomerate(cosines(*range(0, 180 * count, 180)))
    assert merges == ([] if count == 1 else [Merge((0,), (1,), 2.0)])
    assert task_groups(merges, NAMES[:count]) == dict.fromkeys(NAMES[:count], "all")
    assert task_tree(merges, NAMES[:count]) == {name: ["all"] for name in NAMES[:count]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda merges: task_groups(merges, NAMES, 6), "`num_groups` is 6: give 1 to 5"),
        (lambda merges: task_groups(merges, NAMES, 0), "`num_groups` is 0"),
        (lambda merges: task_tree(merges, NAMES, 5), "`levels` is 5: give 1 to 4"),
        (lambda _: agglomerate(torch.full((2, 2), torch.nan)), "`cosines` must be .* finite"),
        (lambda _: agglomerate(torch.zeros(2, 3)), r"`cosines` must be \[tasks, tasks\]"),
    ],
)
def test_what_is_impossible_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(agglomerate(cosines(0, 3, 80, 84, -80)))
