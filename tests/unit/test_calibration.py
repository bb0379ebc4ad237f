"""The calibration error of answers whose confidence is known to be right, or wrong by a known amount."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from conftest import mostly_slow

from align.evals.calibration import calibration_error, chance_error, reliability, temperature


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
    assert calibration_error([0.1, 0.15, 1.0, 0.95], [0, 1, 1, 1]) == pytest.approx(0.5 * 0.375 + 0.5 * 0.025)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_known_shift_is_found(shift):
    assert calibration_error(*drawn(shift)) == pytest.approx(shift, abs=0.012)


@pytest.mark.parametrize(
    ("count", "shift"), mostly_slow([(100, 0.0), (1000, 0.0), (1000, 0.1)], [(100, 0.0), (1000, 0.1)])
)
def test_an_error_is_beyond_chance_in_five_of_a_hundred_calibrated_models_and_in_all_that_are_not(count, shift):
    rng, beyond = np.random.default_rng(1), []
    for draw in range(200):
        sure = rng.uniform(0.35, 1.0, count)
        right = (rng.uniform(size=count) < sure - shift).astype(float)
        mean, most = chance_error(sure, 200, draw)
        assert 0 < mean < most
        beyond.append(calibration_error(sure, right) > most)
    assert 0.02 < np.mean(beyond) < 0.09 if shift == 0 else np.mean(beyond) > 0.98


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_one_that_fits_best(scale):
    """Verdicts drawn at a known temperature, and the minimum that scipy finds."""
    rng = np.random.default_rng(2)
    differences = rng.normal(size=4000)
    wins = rng.uniform(size=4000) < 1 / (1 + np.exp(-differences / scale))
    margins = np.where(wins, differences, -differences)
    found = temperature(margins.tolist())
    least = scipy.optimize.minimize_scalar(
        lambda log_t: np.logaddexp(0, -margins / np.exp(log_t)).mean(), bounds=(-4, 4), method="bounded"
    )
    assert found == pytest.approx(float(np.exp(least.x)), rel=1e-3)
    assert found == pytest.approx(scale, rel=0.15)


def test_a_temperature_has_limits():
    assert temperature([1.0, 2.0]) == pytest.approx(0.01, rel=0.01)  # every pair is right
    assert temperature([-1.0, -2.0]) == pytest.approx(100, rel=0.01)  # every pair is wrong
