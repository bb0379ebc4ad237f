"""How well scores order responses as people do: accuracy on pairs, best of K, styles, ties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from align.evals.intervals import Interval, bootstrap_statistic, bounds, few

Counts = tuple[float, float]  # how many are right, of how many

# Responses whose lengths differ by less than this fraction of the longer one are about equally long
# [ours].
ABOUT_EQUAL = 0.1
# The weights of RewardBench 2's score on its subset Ties (allenai/reward-bench, utils.py).
_TIES_WEIGHTS = {"tied": 0.3, "ref": 0.3, "preferred": 0.2, "preferred_hard": 0.2, "margin": 0.01}


class Scored(NamedTuple):
    """A ranking with the scores that a reward model gives to its responses.

    Attributes:
        prompt: a key of the prompt; rankings of one prompt are drawn together in a bootstrap.
        ranks: K ranks by people, 1 for the best; equal ranks are ties.
        scores: K scores.
        lengths: K lengths of the responses, in tokens.
        group: the part of the dataset that the ranking is in; "" if in none.
        styles: the style of each response; empty if not known.
        ties: how RewardBench 2 calls a row of its subset Ties; "" for any other row.
    """

    prompt: str
    ranks: Sequence[int]
    scores: Sequence[float]
    lengths: Sequence[int]
    group: str = ""
    styles: Sequence[str] = ()
    ties: str = ""

    def pairs(self) -> list[tuple[int, int]]:
        """Return the places (better, worse) of each pair that is not tied in `ranks`."""
        places = range(len(self.ranks))
        return [(i, j) for i in places for j in places if self.ranks[i] < self.ranks[j]]


def credit(better: float, worse: float) -> float:
    """Return 1 if the better response has the higher score, 0.5 if both are equal, else 0."""
    return (1.0 + (better > worse) - (better < worse)) / 2


def pair_credit(values: Sequence[float], ranking: Scored) -> Counts:
    """Count the pairs that `values` [K] order as people do, and all pairs that are not tied."""
    pairs = ranking.pairs()
    return sum(credit(values[i], values[j]) for i, j in pairs), float(len(pairs))


def best_of(values: Sequence[float], ranks: Sequence[int]) -> float | None:
    """Return 1 if the highest of `values` [K] is that of the best response, else 0.

    If the best response shares the highest value with others, it is 1 divided by their number, as
    in RewardBench 2. None if fewer than three responses are ranked, or several are best.
    """
    if len(ranks) < 3 or sum(rank == min(ranks) for rank in ranks) != 1:
        return None
    highest = [i for i, value in enumerate(values) if value == max(values)]
    return float(ranks.index(min(ranks)) in highest) / len(highest)


def kendall_tau(scores: Sequence[float], ranks: Sequence[int]) -> float:
    """Return Kendall's tau-b between scores and ranks: 1 is the same order, -1 the opposite.

    It is 0 if all scores are equal: they order nothing. Source: Kendall 1945, The treatment of ties
    in ranking problems.
    """
    agreeing, by_score, by_rank = 0, 0, 0
    for i, j in itertools.combinations(range(len(ranks)), 2):
        one = (scores[i] > scores[j]) - (scores[i] < scores[j])
        other = (ranks[i] < ranks[j]) - (ranks[i] > ranks[j])
        agreeing += one * other
        by_score += one != 0
        by_rank += other != 0
    return agreeing / math.sqrt(by_score * by_rank) if by_score and by_rank else 0.0


# -- length ----------------------------------------------------------------------------------------


def length_bin(better: int, worse: int) -> str:
    """Return whether the better response is the shorter one, the longer one, or about as long."""
    if abs(better - worse) <= ABOUT_EQUAL * max(better, worse):
        return "about_equal"
    return "chosen_longer" if better > worse else "chosen_shorter"


def longer_wins(rankings: Iterable[Scored]) -> bool:
    """Return whether the longer response is the better one in at least half of the pairs."""
    right, pairs = 0.0, 0.0
    for ranking in rankings:
        own = pair_credit(ranking.lengths, ranking)
        right, pairs = right + own[0], pairs + own[1]
    return right >= pairs / 2


def length_rule(ranking: Scored, longer: bool) -> list[float]:
    """Return what the rule "the longer response wins" scores, or "the shorter one"."""
    return [float(length if longer else -length) for length in ranking.lengths]


# -- benchmarks with a rule of their own -----------------------------------------------------------


def style_cells(ranking: Scored) -> dict[str, Counts]:
    """Return RM-Bench's accuracies of one row: easy, normal, hard.

    normal compares responses of one style, hard a plainer better response with a worse one in a
    richer style, easy the opposite. Equal scores count half; RM-Bench counts them as wrong. Empty
    for a row that does not have each style once on each side.

    Source: Liu et al. 2024, RM-Bench, section 3.3, and the README of THU-KEG/RM-Bench.
    """
    order = list(dict.fromkeys(ranking.styles))
    sides = [
        [style for style, rank in zip(ranking.styles, ranking.ranks, strict=False) if rank == side]
        for side in (1, 2)
    ]
    if len(ranking.styles) != len(ranking.ranks) or not order or any(s != order for s in sides):
        return {}
    found: dict[str, Counts] = dict.fromkeys(("easy", "normal", "hard"), (0.0, 0.0))
    for i, j in ranking.pairs():
        lead = order.index(ranking.styles[i]) - order.index(ranking.styles[j])
        name = "normal" if lead == 0 else "easy" if lead > 0 else "hard"
        right, pairs = found[name]
        found[name] = right + credit(ranking.scores[i], ranking.scores[j]), pairs + 1
    return found


def ties_score(rankings: Sequence[Scored]) -> dict[str, float]:
    """Return RewardBench 2's score on its subset Ties, and its parts; empty without such rows.

    Of a question with several equally good answers (tied), each good answer should score above each
    bad one, and the good ones should differ less from each other than from the bad ones. Its
    partner (ref) asks for one answer. `preferred` and `preferred_hard` are the fractions of
    questions in which the spread of the good answers is below their lead over the best bad one; the
    hard one takes the smaller lead of both partners.

    Source: Malik et al. 2025, RewardBench 2, and `process_single_model` in allenai/reward-bench.
    """
    tied, ref = (_spreads_and_leads(rankings, kind) for kind in ("tied", "ref"))
    if not tied and not ref:
        return {}
    both = [(*tied[number], ref[number][1]) for number in sorted(tied.keys() & ref.keys())]
    parts = {
        "tied": _mean([lead > 0 for _, lead in tied.values()]),
        "ref": _mean([lead > 0 for _, lead in ref.values()]),
        "preferred": _mean([lead > spread for spread, lead, _ in both]),
        "preferred_hard": _mean([min(lead, other) > spread for spread, lead, other in both]),
        "margin": _mean([_relative(min(lead, other), spread) for spread, lead, other in both]),
    }
    return {"score": sum(w * parts[name] for name, w in _TIES_WEIGHTS.items()), **parts}


def _spreads_and_leads(rankings: Sequence[Scored], kind: str) -> dict[str, tuple[float, float]]:
    """Return the spread of the good answers' scores, and their lead over the best bad answer.

    They are those of each question of a kind, `tied` or `ref`, by its number.
    """
    found = {}
    for ranking in rankings:
        own, _, number = ranking.ties.partition(":")
        good, bad = (
            [s for s, rank in zip(ranking.scores, ranking.ranks, strict=True) if rank == side]
            for side in (1, 2)
        )
        if own == kind and good and bad:
            found[number] = (max(good) - min(good), min(good) - max(bad))
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _relative(lead: float, spread: float) -> float:
    """Return tanh(lead / spread - 1), with the limits that numpy's division by 0 has."""
    if spread:
        return math.tanh(lead / spread - 1)
    return float((lead > 0) - (lead < 0))


# -- annotators ------------------------------------------------------------------------------------


def agreement(votes: Iterable[Sequence[Sequence[int]]]) -> Counts:
    """Count the pairs that two annotators of one row order alike, of those that both order.

    Args:
        votes: for each row, the ranks that each annotator gives.
    """
    alike, ordered = 0, 0
    for rankings in votes:
        for one, other in itertools.combinations(rankings, 2):
            for i, j in itertools.combinations(range(len(one)), 2):
                first, second = one[i] - one[j], other[i] - other[j]
                ordered += first * second != 0
                alike += first * second > 0
    return float(alike), float(ordered)


# -- metrics ---------------------------------------------------------------------------------------


class Shares:
    """Fractions with intervals by a bootstrap over prompts.

    The bootstrap draws prompts, not pairs. The pairs of one prompt depend on each other, so drawing
    pairs would make the intervals too narrow.

    Args:
        prompts: the key of each ranking's prompt.
    """

    def __init__(self, prompts: Sequence[str], num_bootstrap: int, seed: int):
        places: dict[str, int] = {}
        self._owners = [places.setdefault(prompt, len(places)) for prompt in prompts]
        self.num_prompts = len(places)
        self._num_bootstrap, self._seed = num_bootstrap, seed

    def of(self, name: str, counts: Sequence[Counts]) -> dict[str, float]:
        """Return NAME, NAME_low and NAME_high of right / all; empty if there is nothing to count.

        Args:
            counts: for each ranking, how many are right, of how many.
        """
        right, every = self._sums(counts)
        if not every.sum():
            return {}
        return bounds(name, self._interval(_ratio, (right, every))) | few(
            name, float((every > 0).sum())
        )

    def gap(self, name: str, one: Sequence[Counts], other: Sequence[Counts]) -> dict[str, float]:
        """Return the difference of two fractions of the same pairs, with its interval."""
        (first, every), (second, _) = self._sums(one), self._sums(other)
        if not every.sum():
            return {}
        return bounds(name, self._interval(_ratio, (first - second, every))) | few(
            name, float((every > 0).sum())
        )

    def balanced(self, name: str, parts: Sequence[Sequence[Counts]]) -> dict[str, float]:
        """Return the mean of two fractions, whatever their numbers; empty if one has no pairs."""
        columns = [column for part in parts for column in self._sums(part)]
        if not columns[1].sum() or not columns[3].sum():
            return {}
        return bounds(name, self._interval(_balanced, columns)) | few(
            name, float(min((columns[1] > 0).sum(), (columns[3] > 0).sum()))
        )

    def correlation(
        self, name: str, pairs: Sequence[Sequence[tuple[float, float]]]
    ) -> dict[str, float]:
        """Return Pearson's r of two values within prompts, with its interval.

        Each prompt's means are subtracted first: only differences between responses to one prompt
        matter to a policy. Empty if one of the values never differs.

        Args:
            pairs: for each ranking, the two values of each response.
        """
        by_prompt: list[list[tuple[float, float]]] = [[] for _ in range(self.num_prompts)]
        for owner, values in zip(self._owners, pairs, strict=True):
            by_prompt[owner] += values
        sums = []
        for values in by_prompt:
            table = np.array(values, dtype=float)
            table -= table.mean(0)
            sums.append((table[:, 0] ** 2, table[:, 1] ** 2, table[:, 0] * table[:, 1]))
        columns = [np.array([float(s[i].sum()) for s in sums]) for i in range(3)]
        if not columns[0].sum() or not columns[1].sum():
            return {}
        return bounds(name, self._interval(_pearson, columns)) | few(name, self.num_prompts)

    def _sums(self, counts: Sequence[Counts]) -> tuple[np.ndarray, np.ndarray]:
        table = np.array(counts, dtype=float).reshape(len(self._owners), 2)
        right, every = (np.bincount(self._owners, table[:, i], self.num_prompts) for i in range(2))
        return right, every

    def _interval(self, statistic: Callable[..., float], columns: Sequence[np.ndarray]) -> Interval:
        return bootstrap_statistic(statistic, columns, self._num_bootstrap, self._seed)


def _ratio(right: np.ndarray, every: np.ndarray) -> float:
    return float(right.sum() / max(every.sum(), 1e-9))


def _balanced(
    right: np.ndarray, every: np.ndarray, other_right: np.ndarray, other: np.ndarray
) -> float:
    return (_ratio(right, every) + _ratio(other_right, other)) / 2


def _pearson(first: np.ndarray, second: np.ndarray, both: np.ndarray) -> float:
    return float(both.sum() / max(math.sqrt(first.sum() * second.sum()), 1e-30))
