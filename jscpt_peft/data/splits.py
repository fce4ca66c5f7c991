"""Sampling as pure functions of (seed, task name, item key).

Items of a class are ordered by a hash of these three, and every function takes the first ones of that order. So a
sample does not depend on the order of tasks or files, on what else is loaded or on the number of processes, and the
samples of one seed are nested: 5 shots are among the 10 shots.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence

from jscpt_peft.settings import Fraction, PositiveInt, check_setting

logger = logging.getLogger(__name__)

KeysOfClass = Mapping[str, Sequence[str]]

DEV_OF_VALIDATION = 0.5
DEV_OF_TRAIN = 0.2


def check_amount(train_fraction: float | None, shots: int | None, manifest: dict | None = None) -> None:
    """Raises a ValueError where training images are asked for in two ways, or in an impossible one."""
    if train_fraction is not None and shots is not None:
        raise ValueError(f"`train_fraction` is {train_fraction} and `shots` is {shots}: give at most one of them.")
    if manifest is not None and (train_fraction is not None or shots is not None):
        raise ValueError("`manifest` fixes the training images: leave out `train_fraction` and `shots`.")
    check_setting("train_fraction", train_fraction, Fraction | None)
    check_setting("shots", shots, PositiveInt | None)


def ranked(keys: Iterable[str], seed: int, task: str) -> list[str]:
    """`keys` in the order in which `seed` draws them for `task`."""
    return sorted(keys, key=lambda key: _hash(seed, task, key))


def take(keys: Sequence[str], train_fraction: float | None, shots: int | None, seed: int, task: str) -> list[str]:
    """The first `shots` of one class's keys (or all, where there are fewer), or a fraction of them; else all keys.

    A fraction is rounded to the nearest number, but at least one (if there is one).

    Raises:
        ValueError: what `check_amount` raises.
    """
    check_amount(train_fraction, shots)
    if train_fraction is not None:
        shots = max(1, _rounded(len(keys) * train_fraction))
    return list(keys) if shots is None else ranked(keys, seed, task)[:shots]


def split_pool(
    keys: Sequence[str], validation_fraction: float, test_fraction: float, seed: int, task: str
) -> tuple[list[str], list[str], list[str]]:
    """One class's keys as (train, validation, test); train gets the rest, and at least one key (if there is one).

    Raises:
        ValueError: negative fractions, or fractions that leave nothing for training.
    """
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"`validation_fraction` is {validation_fraction} and `test_fraction` is {test_fraction}: neither may be "
            "negative, and together they must stay below 1."
        )
    order = ranked(keys, seed, task)
    spare = max(0, len(order) - 1)
    tests = min(spare, _rounded(len(order) * test_fraction))
    validations = min(spare - tests, _rounded(len(order) * validation_fraction))
    return order[tests + validations :], order[tests : tests + validations], order[:tests]


def split_pools(
    classes: KeysOfClass, validation_fraction: float, test_fraction: float, seed: int, task: str
) -> dict[str, dict[str, list[str]]]:
    """`split_pool` of every class: split -> class -> keys."""
    parts = {name: split_pool(keys, validation_fraction, test_fraction, seed, task) for name, keys in classes.items()}
    names = ("train", "validation", "test")
    return {split: {name: part[number] for name, part in parts.items()} for number, split in enumerate(names)}


def carve_dev(
    train: KeysOfClass, validation: KeysOfClass, seed: int, task: str
) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
    """Takes D_dev (Eq. 11) out of one task: (train, validation, dev), disjoint and together all that was given.

    D_dev gets half of every class's validation keys, and model selection keeps the rest. Where a share is no whole
    number, a hash of the class name decides which side gets the odd key, so that of many classes with one validation
    image half go to each. With fewer than two validation keys in all, D_dev gets a fifth of the training keys instead
    (the log says so), but never the last one of a class; with none to spare it is a ValueError.
    """
    from_train = sum(len(keys) for keys in validation.values()) < 2
    source, share, kept = (train, DEV_OF_TRAIN, 1) if from_train else (validation, DEV_OF_VALIDATION, 0)
    orders = {name: ranked(keys, seed, task) for name, keys in source.items()}
    sizes = {}
    for name, order in orders.items():
        odd = _hash(seed, task, f"share of {name}") / 2**256
        sizes[name] = max(0, min(len(order) - kept, math.floor(len(order) * share + odd)))
    # the hash may leave one side empty where there are few classes: move one key over
    if sum(sizes.values()) == 0:
        sizes[_first([name for name in orders if len(orders[name]) > kept], seed, task)] = 1
    if not from_train and sum(sizes.values()) == sum(len(order) for order in orders.values()):
        sizes[_first([name for name in orders if sizes[name] > 0], seed, task)] -= 1
    dev = {name: order[: sizes[name]] for name, order in orders.items()}
    rest = {name: order[sizes[name] :] for name, order in orders.items()}
    if not from_train:
        return {name: list(keys) for name, keys in train.items()}, rest, dev
    logger.warning(
        "Task %r has no validation images to share: %d of its %d training images serve the scheduler (D_dev) instead.",
        task,
        sum(len(keys) for keys in dev.values()),
        sum(len(keys) for keys in train.values()),
    )
    return rest, {name: list(keys) for name, keys in validation.items()}, dev


def sample_task(
    splits: Mapping[str, KeysOfClass], train_fraction: float | None, shots: int | None, seed: int, task: str
) -> dict[str, dict[str, list[str]]]:
    """Train, validation, dev and test of a task that has all but D_dev: `carve_dev`, then `take` of training."""
    train, validation, dev = carve_dev(splits["train"], splits["validation"], seed, task)
    train = {name: take(keys, train_fraction, shots, seed, task) for name, keys in train.items()}
    return {"train": train, "validation": validation, "dev": dev, "test": splits["test"]}


def _first(names: Sequence[str], seed: int, task: str) -> str:
    if not names:
        raise ValueError(
            f"`dev` of task {task!r} would be empty: with fewer than two validation images and one training image a "
            "class there is none to spare; add validation images or more training images."
        )
    return ranked(names, seed, task)[0]


def _hash(seed: int, task: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{task}/{key}".encode()).digest(), "big")


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)
