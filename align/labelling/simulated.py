"""Simulated labelers that rank responses by gold score, personal taste and noise.

A labeler's liking for a response is its gold score, plus the labeler's taste for length, plus fresh
noise. The noise is calibrated so that two labelers order a pair the same way as often as
InstructGPT's labelers did (72.6 %, Ouyang et al. 2022, section 3.4).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Standard deviation of tastes, in gold score per standard deviation of length. The latter is taken
# over the responses to one prompt.
_TASTE_DEVIATION = 0.05


class Judged(NamedTuple):
    """The responses to one prompt, with the properties that labelers judge."""

    gold: np.ndarray  # [K] in [0, 1]
    words: np.ndarray  # [K] number of words
    # [K] index of the first response with the same text: equal texts get the same noise.
    first: np.ndarray


def judge(texts: Sequence[str], gold: Sequence[float]) -> Judged:
    """Return the responses `texts` as a `Judged`, with their gold scores."""
    words = np.array([len(text.split()) for text in texts], dtype=float)
    return Judged(
        np.array(gold, dtype=float), words, np.array([texts.index(text) for text in texts])
    )


class Labelers:
    """A group of simulated labelers.

    Args:
        count: the number of labelers.
        tie_width: a response is tied with the next better one if their likings differ by at most
            this.
        rng: draws the tastes now, and the noise of each ranking later.
    """

    def __init__(self, count: int, tie_width: float, rng: np.random.Generator):
        self.tastes = rng.normal(0.0, _TASTE_DEVIATION, count)
        self.tie_width = tie_width
        self.noise = 0.0
        self._rng = rng

    def pick(self) -> int:
        """Return the index of a random labeler."""
        return int(self._rng.integers(len(self.tastes)))

    def rank(self, judged: Judged, labeler: int) -> list[int]:
        """Return the ranks that one labeler gives: 1 is best, equal ranks are ties."""
        likings = _liking(
            judged, self.tastes[labeler], self._rng.standard_normal(len(judged.gold)), self.noise
        )
        return to_ranks(likings, self.tie_width)

    def calibrate(self, sample: Sequence[Judged], agreement: float) -> float:
        """Set the noise so that pairs of labelers agree at the rate `agreement` on `sample`.

        Returns:
            The agreement reached. It is lower than `agreement` if the tastes alone already cause
            more disagreement.
        """
        pairs = [
            self._rng.choice(len(self.tastes), 2, replace=len(self.tastes) < 2) for _ in sample
        ]
        draws = [self._rng.standard_normal((2, len(judged.gold))) for judged in sample]

        def reached(noise: float) -> float:
            alike = ordered = 0
            for judged, pair, draw in zip(sample, pairs, draws, strict=True):
                one, two = (
                    to_ranks(_liking(judged, self.tastes[who], e, noise), self.tie_width)
                    for who, e in zip(pair, draw, strict=True)
                )
                a, o = agreeing_pairs(one, two)
                alike, ordered = alike + a, ordered + o
            return alike / max(ordered, 1)

        low, high = 0.0, 4.0
        for _ in range(20):
            self.noise = (low + high) / 2
            low, high = (self.noise, high) if reached(self.noise) > agreement else (low, self.noise)
        return reached(self.noise)


def _liking(judged: Judged, taste: float, draw: np.ndarray, noise: float) -> np.ndarray:
    deviation = judged.words.std()
    longer = (
        (judged.words - judged.words.mean()) / deviation
        if deviation > 0
        else np.zeros(len(judged.words))
    )
    return judged.gold + taste * longer + noise * draw[judged.first]


def to_ranks(likings: np.ndarray, tie_width: float) -> list[int]:
    """Convert likings to ranks, 1 for the best.

    A response within `tie_width` of the next better one shares its rank.
    """
    order = np.argsort(-likings, kind="stable")
    ranks = np.ones(len(likings), dtype=int)
    for better, worse in itertools.pairwise(order):
        ranks[worse] = ranks[better] + (likings[better] - likings[worse] > tie_width)
    return ranks.tolist()


def agreeing_pairs(one: Sequence[float], two: Sequence[float]) -> tuple[int, int]:
    """Count the pairs on which two rankings agree; lower is better in both.

    Returns:
        (pairs ordered the same way, pairs that both rankings order).
    """
    a, b = np.asarray(one), np.asarray(two)
    upper = np.triu_indices(len(a), 1)
    signs = np.sign(a[:, None] - a[None, :])[upper] * np.sign(b[:, None] - b[None, :])[upper]
    return int((signs > 0).sum()), int((signs != 0).sum())
