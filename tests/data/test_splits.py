from __future__ import annotations

import logging
import random

import pytest

from jscpt_peft.data.splits import carve_dev, ranked, split_pool, take

KEYS = [f"class/{number}.png" for number in range(40)]


def flat(classes):
    return sorted(key for keys in classes.values() for key in keys)


def classes_of(*sizes):
    return {f"c{label}": [f"c{label}/{number}" for number in range(size)] for label, size in enumerate(sizes)}


def test_the_order_depends_on_seed_task_and_key_alone():
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    assert ranked(shuffled, 1, "art") == ranked(KEYS, 1, "art")
    assert ranked(KEYS, 1, "art") != ranked(KEYS, 2, "art")
    assert ranked(KEYS, 1, "art") != ranked(KEYS, 1, "clipart")
    # of what else is loaded: leaving keys out leaves the order of the others
    assert ranked(KEYS[:20], 1, "art") == [key for key in ranked(KEYS, 1, "art") if key in KEYS[:20]]


def test_the_order_is_uniform():
    counts = [0] * 4
    for seed in range(2000):
        counts[ranked("abcd", seed, "art").index("a")] += 1
    assert max(abs(count - 500) for count in counts) < 80  # 4 standard deviations


@pytest.mark.parametrize(
    ("size", "fraction", "kept"), [(40, 0.1, 4), (3, 0.1, 1), (5, 0.5, 3), (7, 1.0, 7), (0, 0.5, 0)]
)
def test_fraction_is_rounded_but_at_least_one(size, fraction, kept):
    assert len(take(KEYS[:size], fraction, None, 1, "art")) == kept


def test_samples_of_one_seed_are_nested():
    assert set(take(KEYS, None, 5, 1, "art")) < set(take(KEYS, None, 10, 1, "art"))
    assert set(take(KEYS, 0.1, None, 1, "art")) < set(take(KEYS, 0.2, None, 1, "art"))
    assert len(take(KEYS, None, 100, 1, "art")) == len(KEYS)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 10, 40])
def test_pool_is_partitioned_and_training_comes_first(size):
    parts = split_pool(KEYS[:size], 0.2, 0.3, 0, "art")
    assert sorted(key for part in parts for key in part) == sorted(KEYS[:size])
    assert len(parts[0]) >= min(size, 1)
    if size >= 10:
        assert [len(part) / size for part in parts] == [0.5, 0.2, 0.3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: take(KEYS, 0.0, None, 1, "art"), "`train_fraction` must be above 0, got 0.0"),
        (lambda: take(KEYS, 10, None, 1, "art"), "`train_fraction` must be at most 1, got 10"),
        (lambda: take(KEYS, None, 0, 1, "art"), "`shots` must be at least 1, got 0"),
        (lambda: split_pool(KEYS, 0.5, 0.5, 1, "art"), "`validation_fraction` is 0.5 and `test_fraction` is 0.5"),
        (lambda: split_pool(KEYS, -0.1, 0.5, 1, "art"), "`validation_fraction` is -0.1"),
    ],
)
def test_bad_amounts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("sizes", [(10, 10), (1, 1, 1, 1), (1, 1), (2,), (2, 0), (7, 1, 0, 3)])
@pytest.mark.parametrize("seed", range(8))
def test_dev_is_a_share_of_validation_and_neither_is_empty(sizes, seed, caplog):
    train, validation = classes_of(4, 4, 4, 4), classes_of(*sizes)
    new_train, rest, dev = carve_dev(train, validation, seed, "art")
    assert new_train == train
    assert sorted(flat(dev) + flat(rest)) == flat(validation)
    assert flat(dev)
    assert flat(rest)
    assert not caplog.records
    for name, keys in validation.items():
        if len(keys) > 2:
            assert abs(len(dev[name]) - len(keys) / 2) < 1


def test_single_validation_images_are_shared_out_evenly():
    _, rest, dev = carve_dev(classes_of(*[2] * 1000), classes_of(*[1] * 1000), 1, "art")
    assert abs(len(flat(dev)) - len(flat(rest))) < 130  # 4 standard deviations


@pytest.mark.parametrize("validation", [{}, classes_of(0, 0, 0), classes_of(1)])
def test_without_validation_dev_comes_from_train_and_the_log_says_so(validation, caplog):
    train = classes_of(10, 1, 5)
    with caplog.at_level(logging.WARNING):
        new_train, rest, dev = carve_dev(train, validation, 1, "art")
    assert "'art' has no validation images to share: 3 of its 16 training images" in caplog.text
    assert {name: len(keys) for name, keys in dev.items()} == {"c0": 2, "c1": 0, "c2": 1}
    assert sorted(flat(dev) + flat(new_train)) == flat(train)
    assert flat(rest) == flat(validation)


@pytest.mark.parametrize("seed", range(8))
def test_dev_from_very_few_training_images_is_not_empty(seed):
    train, _, dev = carve_dev(classes_of(1, 2), {}, seed, "art")
    assert len(flat(dev)) == 1
    assert all(train.values())


def test_an_empty_dev_is_refused():
    with pytest.raises(ValueError, match="`dev` of task 'art' would be empty"):
        carve_dev(classes_of(1, 1), {}, 1, "art")
