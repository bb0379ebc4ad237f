"""Estimate the score of the best of n samples from N >= n samples of each prompt.

The estimators are unbiased: they average over all subsets of n of the N samples, by ranks instead
of by enumeration [Nakano et al. 2021, WebGPT; Gao et al. 2022, section 2]. Samples with equal
proxy scores share their chances: if several of a subset are the best, each is chosen equally often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def kl_of_best(n: int) -> float:
    """Return KL(best of n || one sample) in nats: ln n - (n - 1) / n.

    It is exact if no two samples tie, and an upper bound otherwise [Beirami et al. 2024].

    Source: Stiennon et al. 2020, appendix G.3; Gao et al. 2022.
    """
    return math.log(n) - (n - 1) / n


def best_weights(proxy: np.ndarray, n: int) -> np.ndarray:
    """Return for each of N samples its chance to be the best of n of them, [N].

    The sample at place k of N, from the worst up, is the best of C(k-1, n-1) of the C(N, n)
    subsets. Ties share their places.

    Args:
        proxy: scores that choose, [N].
        n: from 1 to N.
    """
    _, group, sizes = np.unique(proxy, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    until = _chance_of_first(len(proxy), n)
    return ((until[ends] - until[ends - sizes]) / sizes)[group]


def win_rates(proxy: np.ndarray, judge: np.ndarray, counts: Sequence[int]) -> list[float]:
    """Return for each n how often the judge prefers the best of n to one more sample.

    A tie counts half. The mean is over all subsets of n of the N + 1 samples, with each of the
    other samples. So for n = 1 it is exactly 1/2.

    Args:
        proxy: scores that choose, [N + 1].
        judge: scores that compare, [N + 1].
        counts: values of n, from 1 to N.
    """
    _, group, sizes = np.unique(proxy, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    # The preference for x over y, summed over y that the proxy puts below x, above x, or beside x.
    prefers = (judge[:, None] > judge) + 0.5 * (judge[:, None] == judge)
    np.fill_diagonal(prefers, 0.0)
    over_worse = (prefers * (group[:, None] > group)).sum(1)
    over_better = (prefers * (group[:, None] < group)).sum(1)
    over_equal = (prefers * (group[:, None] == group)).sum(1)
    rates = []
    for n in counts:
        # Without y, the places above it move down by one, and its ties share one place less.
        until = np.append(_chance_of_first(len(proxy) - 1, n), np.nan)
        without_worse = (until[ends - 1] - until[np.maximum(starts - 1, 0)]) / sizes
        without_better = np.nan_to_num(until[ends] - until[starts]) / sizes
        without_equal = (until[ends - 1] - until[starts]) / np.maximum(sizes - 1, 1)
        total = (
            without_worse[group] * over_worse
            + without_better[group] * over_better
            + without_equal[group] * over_equal
        )
        rates.append(float(total.sum() / len(proxy)))
    return rates


def _chance_of_first(total: int, n: int) -> np.ndarray:
    """Return the chance that the best of n is among the k worst of `total`, for k = 0 to total.

    That is C(k, n) / C(total, n), computed from k = total down, where it is 1.
    """
    places = np.arange(total, 0, -1, dtype=float)
    steps = np.maximum(places - n, 0.0) / places  # C(k-1, n) / C(k, n) = (k - n) / k
    return np.concatenate([[1.0], np.cumprod(steps)])[::-1]
