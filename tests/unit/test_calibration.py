"""The calibration error of answers whose confidence is known to be right, or wrong by a known amount."""

from __future__ import annotations

import numpy as np
import pytest

from align.evals.calibration import calibration_error, error_change, reliability


def drawn(shift: float, count: int = 20_000) -> tuple[list[float], list[float]]:
    """Confidences, and answers that are right `shift` less often than those say."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.4, 1.0, count)
    return sure.tolist(), (rng.uniform(size=count) < sure - shift).astype(float).tolist()


def test_bins_by_hand():
    first, last = reliability([0.1, 0.15, 1.0, 0.95], [0, 1, 1, 1])
    assert first == (0.1, 0.2, 2, pytest.approx(0.125), 0.5)
    assert last == (0.9, 1.0, 2, pytest.approx(0.975), 1.0)


def test_the_error_by_hand():
    mean, low, high = calibration_error([0.1, 0.15, 1.0, 0.95], [0, 1, 1, 1], 0, 0)
    assert mean == low == high == pytest.approx(0.5 * 0.375 + 0.5 * 0.025)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_known_shift_is_found(shift):
    mean, low, high = calibration_error(*drawn(shift), 200, 0)
    assert mean == pytest.approx(shift, abs=0.012)
    assert low <= mean <= high
    assert high - low < 0.04


def test_the_interval_covers_the_error_where_answers_are_few():
    """200 sets of 200 answers, each off by 0.05; resampling without the shift covers it 65 times in a hundred."""
    rng, held = np.random.default_rng(1), 0
    for draw in range(200):
        sure = rng.uniform(0.4, 1.0, 200)
        right = (rng.uniform(size=200) < sure - 0.05).astype(float)
        _, low, high = calibration_error(sure, right, 200, draw)
        held += low <= 0.05 <= high
    assert 0.88 < held / 200 <= 0.99


def test_the_change_is_that_of_the_two_errors_on_the_same_answers():
    (sure, right), (_, worse) = drawn(0.0), drawn(0.2)
    mean, low, _ = error_change((sure, sure), (worse, right), 200, 0)
    assert mean == pytest.approx(0.2, abs=0.012)
    assert low > 0.15
    same = error_change((sure, sure), (right, right), 200, 0)
    assert same == (0.0, 0.0, 0.0)
