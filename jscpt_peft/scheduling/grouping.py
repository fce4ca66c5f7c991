"""Groups (MmAP) and a tree (HiPro) of tasks whose gradients agree, by agglomerative clustering of their cosines.

Neither publication's rule could be read; these are the simplest ones: average linkage of 1 - cosine, cut where the
distance between the clusters that are merged next jumps most.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

Cluster = tuple[int, ...]


class Merge(NamedTuple):
    """Two clusters, as positions of tasks, that become one, and the mean of 1 - cosine between their tasks."""

    first: Cluster
    second: Cluster
    distance: float


def agglomerate(cosines: Tensor) -> list[Merge]:
    """The N - 1 merges of N tasks, nearest clusters first, by average linkage.

    Args:
        cosines: `[N, N]` of the tasks' gradients, as `gradient_cosine` gives them; symmetric.

    Raises:
        ValueError: `cosines` is no square matrix of finite numbers.

    Example:
        >>> nearest, rest = agglomerate(torch.tensor([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]]))
        >>> nearest.first, nearest.second
        ((0,), (2,))
    """
    if cosines.dim() != 2 or cosines.shape[0] != cosines.shape[1] or not cosines.isfinite().all():
        raise ValueError(f"`cosines` must be [tasks, tasks] and finite, got {tuple(cosines.shape)}: {cosines}.")
    distances = (1 - cosines.double()).tolist()
    clusters: list[Cluster] = [(task,) for task in range(len(cosines))]
    merges = []

    def between(pair: tuple[Cluster, Cluster]) -> float:
        return sum(distances[i][j] for i in pair[0] for j in pair[1]) / (len(pair[0]) * len(pair[1]))

    while len(clusters) > 1:
        nearest = min(combinations(clusters, 2), key=between)
        merges.append(Merge(*nearest, between(nearest)))
        clusters = [cluster for cluster in clusters if cluster not in nearest]
        clusters = sorted([*clusters, tuple(sorted(nearest[0] + nearest[1]))])
    return merges


def task_groups(merges: Sequence[Merge], names: Sequence[str], num_groups: int | None = None) -> dict[str, str]:
    """Disjoint groups: task -> name of its group, as `JSCPTConfig.groups` takes them for MmAP.

    Args:
        merges: of `agglomerate`.
        names: of the N tasks.
        num_groups: how many; `None`: where the distance jumps most, from 2 to N - 1 (1 with fewer than three tasks).

    Raises:
        ValueError: there are fewer tasks than groups.
    """
    count = len(names)
    if num_groups is None:
        num_groups = next(iter(_cuts(merges, 1)), 1)
    if not 1 <= num_groups <= count:
        raise ValueError(f"`num_groups` is {num_groups}: give 1 to {count}, the number of tasks.")
    named = {}
    for cluster in _clusters(merges, num_groups):
        named |= {names[task]: _name(cluster, names) for task in cluster}
    return {name: named[name] for name in names}


def task_tree(merges: Sequence[Merge], names: Sequence[str], levels: int | None = None) -> dict[str, list[str]]:
    """A tree: task -> the nodes above it, from the root on, as `JSCPTConfig.groups` takes them for HiPro.

    Args:
        merges: of `agglomerate`.
        names: of the N tasks.
        levels: at most so many nodes above a task, the root and the clusters at the `levels - 1` largest jumps of the
            distance; `None`: 2, or 1 with fewer than three tasks. A cluster stands once on a path, and a task alone is
            a leaf: paths may be shorter.

    Raises:
        ValueError: so many levels are impossible.
    """
    most = max(len(names) - 1, 1)
    levels = min(2, most) if levels is None else levels
    if not 1 <= levels <= most:
        raise ValueError(f"`levels` is {levels}: give 1 to {most}, what a tree of {len(names)} tasks can have.")
    paths: dict[str, list[str]] = {name: [_name(range(len(names)), names)] for name in names}
    for count in sorted(_cuts(merges, levels - 1)):
        for cluster in _clusters(merges, count):
            for task in cluster if len(cluster) > 1 else ():
                node, path = _name(cluster, names), paths[names[task]]
                if path[-1] != node:
                    path.append(node)
    return paths


def _cuts(merges: Sequence[Merge], number: int) -> list[int]:
    """Numbers of clusters, 2 to N - 1, at which the next merge's distance is largest against the last one's."""
    jumps = {
        len(merges) + 1 - done: merges[done].distance - merges[done - 1].distance for done in range(1, len(merges))
    }
    return sorted(jumps, key=lambda count: -jumps[count])[:number]


def _clusters(merges: Sequence[Merge], count: int) -> list[Cluster]:
    clusters = {(task,) for task in range(len(merges) + 1)}
    for first, second, _ in merges[: len(merges) + 1 - count]:
        clusters = clusters - {first, second} | {tuple(sorted(first + second))}
    return sorted(clusters)


def _name(cluster: Sequence[int], names: Sequence[str]) -> str:
    """Clusters with the same first task lie in one another, so that their sizes tell them apart."""
    if len(cluster) == len(names):
        return "all"
    if len(cluster) > 3:
        return f"{names[cluster[0]]}+{len(cluster) - 1} more"
    return "+".join(names[task] for task in cluster)
