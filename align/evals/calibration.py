"""Does a model that says it is 80 % sure turn out right 80 times in a hundred? [GPT-4, figure 8]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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


def calibration_error(confidences: Sequence[float], right: Sequence[float]) -> float:
    """The expected calibration error: sum over bins of |accuracy - confidence| times the bin's share of the answers.

    Noise in a bin counts as distance from it, so of few answers it is well above 0 for a model that is calibrated to
    perfection; `chance_error` says how far, and resampling the answers says nothing of it.
    """
    sure = np.asarray(confidences, dtype=float)
    return _error(np.asarray(right, dtype=float) - sure, _places(sure))


def chance_error(confidences: Sequence[float], draws: int, seed: int) -> tuple[float, float]:
    """What the error is for a model that is exactly as sure as it is right: the mean, and the 95 % quantile.

    Its answers are drawn, right with the probability that it says, `draws` times. An error beyond the quantile is one
    of calibration, and not of chance.
    """
    sure, rng = np.asarray(confidences, dtype=float), np.random.default_rng(seed)
    place = _places(sure)
    errors = [_error((rng.uniform(size=len(sure)) < sure) - sure, place) for _ in range(max(1, draws))]
    return float(np.mean(errors)), float(np.percentile(errors, 95))


def _error(gap: np.ndarray, place: np.ndarray) -> float:
    return float(np.abs(np.bincount(place, gap, NUM_BINS)).sum() / len(gap))


def _places(sure: np.ndarray) -> np.ndarray:
    return np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
