"""The estimators of the best of n beside an enumeration of all subsets, and identities."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from align.evals.best_of_n import best_weights, kl_of_best, win_rates


def drawn(count: int, seed: int, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of `count` samples by who chooses and by who judges; few `kinds` of them make ties."""
    rng = random.Random(seed)
    return tuple(np.array([rng.choice(range(kinds)) / kinds for _ in range(count)]) for _ in range(2))  # type: ignore[return-value]


def best_of(subset: tuple[int, ...], proxy: np.ndarray) -> list[int]:
    """The samples of a subset that may be chosen: several if they tie."""
    return [i for i in subset if proxy[i] == max(proxy[j] for j in subset)]


@pytest.mark.parametrize("kinds", [2, 4, 10**6])
@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_the_expected_score_is_the_mean_over_all_subsets(count: int, kinds: int) -> None:
    """If several of a subset are the best, one of them is chosen at random."""
    for seed, n in itertools.product(range(8), range(1, count + 1)):
        proxy, judge = drawn(count, seed, kinds)
        means = [np.mean(judge[best_of(subset, proxy)]) for subset in itertools.combinations(range(count), n)]
        assert best_weights(proxy, n) @ judge == pytest.approx(np.mean(means), abs=1e-12)


@pytest.mark.parametrize("kinds", [2, 4, 10**6])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_wins_are_the_mean_over_all_subsets_with_each_other_sample(count: int, kinds: int) -> None:
    for seed in range(8):
        proxy, judge = drawn(count, seed, kinds)
        found = win_rates(proxy, judge, range(1, count))
        for n in range(1, count):
            wins = []
            for subset in itertools.combinations(range(count), n):
                best = judge[best_of(subset, proxy)]
                others = [judge[i] for i in range(count) if i not in subset]
                wins += [np.mean((best > other) + 0.5 * (best == other)) for other in others]
            assert found[n - 1] == pytest.approx(np.mean(wins), abs=1e-12)


def test_one_sample_is_the_mean_and_all_samples_are_the_judge_s_score_of_the_best() -> None:
    proxy, judge = drawn(1000, 0, 10**9)
    assert best_weights(proxy, 1) @ judge == pytest.approx(judge.mean())
    assert best_weights(proxy, 1000) @ judge == judge[proxy.argmax()]
    tied = np.where(proxy > 0.5, 1.0, 0.0)
    assert best_weights(tied, 1000) @ judge == pytest.approx(judge[proxy > 0.5].mean())
    assert best_weights(np.zeros(9), 4) == pytest.approx(np.full(9, 1 / 9))
    for n in (2, 64, 999):
        assert best_weights(proxy, n).sum() == pytest.approx(1)
        assert (best_weights(proxy, n) @ proxy) > (best_weights(proxy, n - 1) @ proxy)


def test_a_sample_wins_half_of_the_time_over_another_and_the_best_as_often_as_ranks_say() -> None:
    """Where the judge agrees with who chose, the best of n beats one more sample in n of n + 1 cases."""
    proxy, judge = drawn(301, 1, 10**9)
    assert win_rates(proxy, judge, [1]) == pytest.approx([0.5])
    assert win_rates(proxy, proxy, [1, 2, 4, 300]) == pytest.approx([1 / 2, 2 / 3, 4 / 5, 300 / 301])
    assert win_rates(proxy, -proxy, [2, 300]) == pytest.approx([1 / 3, 1 / 301])
    assert win_rates(proxy, np.zeros(301), [2, 300]) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_kl_is_that_of_the_distribution_of_the_best(n: int) -> None:
    """Of a variable with M equally likely values without ties, for M from thousands up: the sum p log(p / q)."""
    values = 200_000
    k = np.arange(1, values + 1) / values
    p = k**n - (k - 1 / values) ** n
    assert kl_of_best(n) == pytest.approx(float((p * np.log(p * values)).sum()), abs=1e-4)
    assert kl_of_best(n) == math.log(n) - (n - 1) / n
