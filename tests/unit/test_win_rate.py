"""The share of wins and its interval."""

from __future__ import annotations

import math
import random

import pytest

from align.evals.win_rate import win_rate


def test_a_tie_is_half_a_win():
    got = win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 3.0, 2.0, 5.0], 0, 0)
    assert got == (0.5, 0.5, 0.5, 0.5)
    assert win_rate([1.0, 2.0, 2.0, 9.0], [1.0, 1.0, 1.0, 1.0], 0, 0)[::3] == (0.875, 0.25)


def test_scores_are_compared_in_pairs():
    rng = random.Random(0)
    ours, theirs = ([rng.randint(0, 3) for _ in range(50)] for _ in range(2))
    got = win_rate(ours, theirs, 10, 0)
    pairs = list(zip(ours, theirs, strict=True))
    assert got.rate == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / 50, rel=1e-12)
    assert got.ties == pytest.approx(sum(a == b for a, b in pairs) / 50, rel=1e-12)


def test_swapping_sides_mirrors_everything():
    rng = random.Random(1)
    ours, theirs = ([rng.randint(0, 3) for _ in range(80)] for _ in range(2))
    one, other = win_rate(ours, theirs, 500, 3), win_rate(theirs, ours, 500, 3)
    assert one.rate == pytest.approx(1 - other.rate, rel=1e-12)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), rel=1e-9)
    assert one.ties == other.ties


def test_beating_everything_leaves_no_doubt():
    assert win_rate([1.0] * 20, [0.0] * 20, 100, 0) == (1.0, 1.0, 1.0, 0.0)
    assert win_rate([0.0] * 20, [1.0] * 20, 100, 0) == (0.0, 0.0, 0.0, 0.0)


def test_the_same_seed_gives_the_same_interval_and_no_seed_moves_the_rate():
    rng = random.Random(2)
    ours, theirs = ([rng.random() for _ in range(60)] for _ in range(2))
    assert win_rate(ours, theirs, 200, 5) == win_rate(ours, theirs, 200, 5)
    one, other = win_rate(ours, theirs, 200, 5), win_rate(ours, theirs, 200, 6)
    assert one.rate == other.rate
    assert (one.low, one.high) != (other.low, other.high)


def test_the_interval_has_the_width_of_a_binomial():
    ours = [1.0] * 120 + [0.0] * 80
    got = win_rate(ours, [0.5] * 200, 4000, 0)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 200)
    assert got.low == pytest.approx(0.6 - half, abs=0.01)
    assert got.high == pytest.approx(0.6 + half, abs=0.01)


def test_the_interval_covers_the_true_rate_about_95_times_in_100():
    rng = random.Random(3)
    covered = 0
    for seed in range(300):
        ours = [float(rng.random() < 0.65) for _ in range(100)]
        got = win_rate(ours, [0.5] * 100, 200, seed)
        assert got.low <= got.rate <= got.high
        covered += got.low <= 0.65 <= got.high
    assert 0.90 <= covered / 300 <= 0.98
