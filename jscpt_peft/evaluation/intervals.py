"""How sure a difference of two methods is: bootstrap intervals, paired over test images and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 100  # draws at a time: of ten thousand images 8 MB


class Interval(NamedTuple):
    """A difference of mean accuracies, in [-1, 1], and the bounds of its interval."""

    difference: float
    low: float
    high: float


def paired_interval(
    differences: Sequence[np.ndarray],
    same_images: bool = True,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean over tasks of a difference of accuracies.

    Every draw takes seeds and, within each task, images with replacement; a method's answers to an image are compared
    with the other's to the same image under the same seed. The interval tells how far the difference would move with
    other images and seeds like these; with few seeds it is too narrow rather than too wide.

    Args:
        differences: for each task `[S, n]`: the one method's answer is right (1 or 0) minus the other's, by seed and
            image.
        same_images: every seed has tested the same images, so that they are drawn for all seeds at once.
        level: of the interval.
        draws, seed: of the bootstrap.

    Raises:
        ValueError: there is no task, seed or image, or tasks differ in their numbers of seeds.

    Example:
        >>> paired_interval([np.array([[1, 0, 1, 1]])]).difference
        0.75
    """
    if not differences or any(each.ndim != 2 or 0 in each.shape for each in differences):
        raise ValueError("`differences` must hold an array [seeds, images] for each task, none of them empty.")
    if len({len(each) for each in differences}) > 1:
        raise ValueError(f"`differences` differ in seeds: {[len(each) for each in differences]}, one row a seed each.")
    generator, drawn, num_seeds = np.random.default_rng(seed), [], len(differences[0])
    for start in range(0, draws, CHUNK):
        count = min(CHUNK, draws - start)
        chosen = generator.integers(num_seeds, size=(num_seeds, count))
        means = np.zeros(count)
        for task in differences:
            weights = None
            for rows in chosen:  # of each seed that is drawn, its images
                if weights is None or not same_images:
                    weights = _weights(generator, count, task.shape[1])
                means += (weights * task[rows]).sum(axis=1) / (num_seeds * len(differences))
        drawn.append(means)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(np.concatenate(drawn), [tail, 100 - tail])
    return Interval(float(np.mean([each.mean() for each in differences])), float(low), float(high))


def _weights(generator: np.random.Generator, draws: int, items: int) -> np.ndarray:
    """`[draws, items]`: how often each item is drawn, divided by their number."""
    return generator.multinomial(items, np.full(items, 1 / items), size=draws) / items
