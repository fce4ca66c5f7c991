"""How the images of a benchmark are divided: CoOp's protocol of shots, and the paper's of fractions.

1. Test: the source's own. A pool is split 50/20/30 per class by a fixed seed (CoOp's proportions) where shots are
   drawn; where fractions are, what training and validation leave is test.
2. Training: `shots` or a fraction of every class of the training images. Where shots are drawn and the source has no
   validation images, a fifth of its training images per class (CoOp's proportion, by a fixed seed) is set aside first.
3. Validation: as many images of a class as training has of it, but at most 4 (CoOp's rule), out of the source's
   validation images, or of the training images that were not drawn.
4. D_dev (Eq. 11): half of validation.

All of it is a pure function of (seed, task, key).
"""

from __future__ import annotations

from jscpt_peft.data.benchmarks import Benchmark
from jscpt_peft.data.found import POOL, FoundTask, keys_of
from jscpt_peft.data.splits import carve_dev, ranked, split_pools, take

FIXED_SEED = 0
VALIDATION_SHARE = 0.2  # of CoOp's whole, and of its training images where the test images are given
TEST_SHARE = 0.3
MOST_VALIDATION_SHOTS = 4


def divide(
    benchmark: Benchmark,
    task: str,
    found: FoundTask,
    train_fraction: float | None,
    shots: int | None,
    seed: int,
) -> FoundTask:
    """Train, validation, dev and test of one task, out of `POOL`, or `train` and `test` with or without `validation`.

    Raises a ValueError where an option is out of its range, or nothing is left for validation or testing.
    """
    if benchmark.default_shots is not None:
        found = _official(task, found)
    images = found["train"] if "train" in found else found[POOL]
    train = {name: take(keys, train_fraction, shots, seed, task) for name, keys in images.items()}
    rest = {name: _without(keys, train[name]) for name, keys in images.items()}
    spare = found.get("validation", rest)
    validation = {
        name: ranked(spare.get(name, []), seed, task)[: min(len(keys), MOST_VALIDATION_SHOTS)]
        for name, keys in train.items()
    }
    test = found.get("test") or {name: _without(keys, validation[name]) for name, keys in rest.items()}
    for split, classes in (("validation", validation), ("test", test)):
        if keys_of(classes):
            continue
        asked = f"`train_fraction` {train_fraction}" if shots is None else f"`shots` {shots}"
        raise ValueError(f"{asked} leaves no {split} images of task {task!r}: ask for less.")
    train, validation, dev = carve_dev(train, validation, seed, task)
    return {"train": train, "validation": validation, "dev": dev, "test": test}


def _official(task: str, found: FoundTask) -> FoundTask:
    """Train, validation and test before any are drawn, by CoOp's proportions where the source does not say."""
    if "validation" in found:
        return found
    whole, test_share = (found[POOL], TEST_SHARE) if POOL in found else (found["train"], 0.0)
    divided = split_pools(whole, VALIDATION_SHARE, test_share, FIXED_SEED, task)
    return divided | {split: found[split] for split in ("test",) if split in found}


def _without(keys: list[str], taken: list[str]) -> list[str]:
    gone = set(taken)
    return [key for key in keys if key not in gone]
