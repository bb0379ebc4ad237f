"""Does a model that says it is 80 % sure turn out right 80 times in a hundred? [GPT-4, figure 8]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from align.evals.intervals import Interval

NUM_BINS = 10  # of equal width, as in GPT-4's figure


class Bin(NamedTuple):
    """The answers whose confidence lies in [low, high)."""

    low: float
    high: float
    answers: int
    confidence: float  # mean
    accuracy: float  # share that is right


def reliability(confidences: Sequence[float], right: Sequence[float]) -> list[Bin]:
    """The bins that hold any answer, in order.

    Args:
        confidences: [N], in [0, 1].
        right: [N], 1 where the answer is, 0 where not.
    """
    sure, hit = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    place = _places(sure)
    return [
        Bin(b / NUM_BINS, (b + 1) / NUM_BINS, int(own.sum()), float(sure[own].mean()), float(hit[own].mean()))
        for b in range(NUM_BINS)
        if (own := place == b).any()
    ]


def calibration_error(confidences: Sequence[float], right: Sequence[float], num_bootstrap: int, seed: int) -> Interval:
    """The expected calibration error: sum over bins of |accuracy - confidence| times the bin's share of the answers.

    The mean of the error over resamples lies above the error itself, for noise in a bin counts as distance from it; so
    the bounds are those of the resampled errors shifted by that much. The error itself has that noise, too: of few
    answers a perfectly calibrated model's is above 0.
    """
    errors = _errors(confidences, right, num_bootstrap, seed)
    return _shifted(errors[0], errors[1:])


def error_change(
    confidences: tuple[Sequence[float], Sequence[float]],
    right: tuple[Sequence[float], Sequence[float]],
    num_bootstrap: int,
    seed: int,
) -> Interval:
    """The first model's error less the second's, on the same items, drawn again together."""
    one, two = (_errors(c, r, num_bootstrap, seed) for c, r in zip(confidences, right, strict=True))
    return _shifted(one[0] - two[0], one[1:] - two[1:])


def _errors(confidences: Sequence[float], right: Sequence[float], num_bootstrap: int, seed: int) -> np.ndarray:
    """The error of the answers, then of each resample of them."""
    sure = np.asarray(confidences, dtype=float)
    gap, place, rng = np.asarray(right, dtype=float) - sure, _places(sure), np.random.default_rng(seed)
    draws = [np.arange(len(sure)), *(rng.integers(0, len(sure), len(sure)) for _ in range(num_bootstrap))]
    return np.array([np.abs(np.bincount(place[d], gap[d], NUM_BINS)).sum() / len(sure) for d in draws])


def _shifted(error: float, resampled: np.ndarray) -> Interval:
    if not len(resampled):
        return Interval(float(error), float(error), float(error))
    low, high = np.percentile(resampled, [2.5, 97.5]) - (resampled.mean() - error)
    return Interval(float(error), float(low), float(high))


def _places(sure: np.ndarray) -> np.ndarray:
    return np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
