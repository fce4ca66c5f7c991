from __future__ import annotations

import numpy as np
import pytest

from jscpt_peft.evaluation.intervals import paired_interval


def differences(seeds: int, images: int, same: bool, seed: int = 0) -> np.ndarray:
    """-1, 0 or 1 at random; the same under every seed, or not."""
    return (
        np.random.default_rng(seed)
        .integers(-1, 2, (1 if same else seeds, images))
        .repeat(seeds if same else 1, axis=0)
    )


@pytest.mark.parametrize("same_images", [True, False])
def test_one_seed_has_the_interval_of_the_normal_approximation(same_images):
    tasks = [differences(1, n, True, seed=n) for n in (400, 900)]
    found = paired_interval(tasks, same_images, draws=4000)
    error = sum(each.var() / each.size for each in tasks) ** 0.5 / 2  # of the mean over two tasks
    assert found.difference == pytest.approx(np.mean([each.mean() for each in tasks]))
    assert [found.low, found.high] == pytest.approx(
        [found.difference - 1.96 * error, found.difference + 1.96 * error], abs=0.15 * error
    )


def test_images_that_all_seeds_share_are_drawn_for_all_at_once():
    alike = [differences(4, 400, same=True)]
    wide, narrow = (paired_interval(alike, same_images=same) for same in (True, False))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.15)  # √4


def test_seeds_that_differ_widen_it():
    constant = np.array([[1.0] * 50, [0.0] * 50, [0.0] * 50])
    found = paired_interval([constant])
    assert (found.difference, found.low, found.high) == (pytest.approx(1 / 3), 0, 1)


def test_no_difference_is_a_point_and_draws_are_the_same_again():
    assert paired_interval([np.zeros((2, 5))]) == (0, 0, 0)
    assert paired_interval([differences(2, 30, False)]) == paired_interval([differences(2, 30, False)])


def test_what_cannot_be_compared_is_told():
    for wrong in ([], [np.zeros((0, 3))], [np.zeros(3)]):
        with pytest.raises(ValueError, match=r"array \[seeds, images\]"):
            paired_interval(wrong)
    with pytest.raises(ValueError, match=r"differ in seeds: \[2, 3\]"):
        paired_interval([np.zeros((2, 5)), np.zeros((3, 5))])
