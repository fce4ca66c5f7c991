"""Does the model know how sure it may be? Confidence against accuracy, and the expected calibration error.

After Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017, arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .accuracy import mean_by

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Samples by confidence, in bins of equal width: bin m holds confidences in (m / M, (m + 1) / M].

    Attributes:
        counts: `[M]` samples of each bin.
        confidences: `[M]` their mean confidence, nan where there are none.
        accuracies: `[M]` the part of them that is right, likewise.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Σ_m (n_m / n) |accuracy_m - confidence_m|, in [0, 1] (Guo et al., Eq. 3); nan without samples."""
        if self.counts.sum() == 0:
            return float("nan")
        gaps = np.abs(self.accuracies - self.confidences)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def reliability(confidences: Sequence[float], correct: Sequence[bool], num_bins: int = NUM_BINS) -> Reliability:
    """Sorts samples into bins by the probability of the predicted class.

    Args:
        confidences: `[S]` probability of the class predicted, in [0, 1].
        correct: `[S]` whether that class is the true one.
        num_bins: M.

    Raises:
        ValueError: the two differ in length, or a confidence is no probability.
    """
    confidences, correct = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidences.shape != correct.shape:
        raise ValueError(f"`confidences` has shape {confidences.shape}, `correct` {correct.shape}: pass pairs.")
    wrong = confidences[~((confidences >= 0) & (confidences <= 1))]
    if len(wrong) > 0:
        raise ValueError(f"`confidences` holds {wrong[0]}: pass probabilities, in [0, 1].")
    bins = (np.ceil(confidences * num_bins).astype(int) - 1).clip(min=0)
    counts = np.bincount(bins, minlength=num_bins)
    return Reliability(counts, mean_by(bins, confidences, num_bins), mean_by(bins, correct, num_bins))
