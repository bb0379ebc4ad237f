"""Calibration: are answers with 80 % confidence right in 80 % of the cases? [GPT-4, figure 8]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_BINS = 10  # of equal width, as in GPT-4's figure


class Bin(NamedTuple):
    """A bin: the answers with a confidence in [low, high)."""

    low: float
    high: float
    answers: int
    confidence: float  # mean
    accuracy: float  # fraction that is right


def reliability(confidences: Sequence[float], right: Sequence[float]) -> list[Bin]:
    """Return the bins that hold answers, in order.

    Args:
        confidences: [N], in [0, 1].
        right: [N], 1 if the answer is right, else 0.
    """
    sure, hit = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    place = _places(sure)
    return [
        Bin(
            b / NUM_BINS,
            (b + 1) / NUM_BINS,
            int(own.sum()),
            float(sure[own].mean()),
            float(hit[own].mean()),
        )
        for b in range(NUM_BINS)
        if (own := place == b).any()
    ]


def calibration_error(confidences: Sequence[float], right: Sequence[float]) -> float:
    """Return the expected calibration error.

    This is the sum over bins of |accuracy - confidence| times the bin's fraction of the answers.
    Noise in a bin adds to the error. So with few answers it is well above 0 even for a perfectly
    calibrated model. `chance_error` returns how far; resampling the answers does not show it.
    """
    sure = np.asarray(confidences, dtype=float)
    return _error(np.asarray(right, dtype=float) - sure, _places(sure))


def temperature(margins: Sequence[float]) -> float:
    """Return the temperature at which a reward model's confidences fit the verdicts best.

    A pair's confidence is sigmoid(margin / temperature). Above 1, the model was too sure. The mean
    of -log sigmoid(margin / temperature) is least where its derivative by 1 / temperature is 0. The
    result is between 0.01 and 100; the lowest one means that every pair is right.

    Args:
        margins: [P], the reward of the response that people prefer minus that of the other one.

    Source: Guo et al. 2017, section 4.2.
    """
    found = np.asarray(margins, dtype=float)
    low, high = 0.01, 100.0  # of 1 / temperature
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = -np.mean(found / (1 + np.exp(np.clip(middle * found, -500, 500))))
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def chance_error(confidences: Sequence[float], draws: int, seed: int) -> tuple[float, float]:
    """Return the error of a perfectly calibrated model: the mean, and the 95 % quantile.

    Its answers are drawn `draws` times; each is right with the probability of its confidence. An
    error above the quantile is one of calibration and not of chance.
    """
    sure, rng = np.asarray(confidences, dtype=float), np.random.default_rng(seed)
    place = _places(sure)
    errors = [
        _error((rng.uniform(size=len(sure)) < sure) - sure, place) for _ in range(max(1, draws))
    ]
    return float(np.mean(errors)), float(np.percentile(errors, 95))


def _error(gap: np.ndarray, place: np.ndarray) -> float:
    return float(np.abs(np.bincount(place, gap, NUM_BINS)).sum() / len(gap))


def _places(sure: np.ndarray) -> np.ndarray:
    return np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
