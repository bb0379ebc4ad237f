"""Win rate: the fraction of prompts on which one model's answer beats another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from align.evals.intervals import bootstrap


class WinRate(NamedTuple):
    """A win rate with the bounds of its 95 % interval, and the fraction of ties.

    All values are fractions of the prompts. A tie counts half in `rate`.
    """

    rate: float
    low: float
    high: float
    ties: float


def win_rate(
    scores: Sequence[float], baseline: Sequence[float], num_bootstrap: int, seed: int
) -> WinRate:
    """Compare paired scores.

    `low` and `high` bound 95 % of the rates over prompts drawn with replacement.

    Raises:
        ValueError: there are no scores, they are not paired, or one is not finite.
    """
    if len(scores) != len(baseline) or not len(scores):
        raise ValueError(f"expected paired scores, got {len(scores)} and {len(baseline)}")
    if not np.isfinite([*scores, *baseline]).all():
        raise ValueError("a score is not finite")
    difference = np.asarray(scores, dtype=float) - np.asarray(baseline, dtype=float)
    wins = (difference > 0) + 0.5 * (difference == 0)
    return WinRate(*bootstrap(wins, num_bootstrap, seed), ties=float((difference == 0).mean()))
