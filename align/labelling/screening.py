"""Find labelers whose rankings an admin should look at.

InstructGPT chose labelers by how well their rankings and their flags agreed with others (section
3.4, appendix B.1). Here an admin chooses; a verdict names the reason to look.

Each test has 0.5 % error, so that few votes prove nothing:

* chance: on items that others ranked too, or whose ranking is known, the agreement is below what
  the others reach, and it is not above what random rankings reach (a z-test of each).
* order, length, speed, copies: a share is more than halfway from what the others do to "always".
  The lower end of its Wilson interval must be; one item counts as one observation, because the
  pairs of one ranking depend on each other.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from align.labelling.agreement import Ranking
from align.labelling.simulated import agreeing_pairs

CHANCE = "the rankings cannot be told from chance"
ORDER = "the order in which answers are shown decides the ranking"
LENGTH = "the longer answer is nearly always the better one"
SPEED = "most items took less time than 95 % of the others' items"
COPIES = "nearly all rankings of shared items are the same as another labeler's"

Score = TypeVar("Score")

_Z = 2.576  # one-sided, 0.5 %
_FAST = 0.05  # the share of the others' items that are faster than "fast"
_FEWEST = 5  # items below which a deviation cannot be estimated


class _Traits(NamedTuple):
    """What may show a bias, for each ranking of a labeler; None if one says nothing of it."""

    earlier: list[float | None]
    longer: list[float | None]
    seconds: list[float]


def verdicts(rankings: Sequence[Ranking]) -> dict[str, list[str]]:
    """Return for each labeler the reasons to look at the rankings; mostly there is none.

    Labelers that were found once do not count as "the others" after that. Otherwise they would
    lower the agreement that the others are held against.
    """
    traits: dict[str, _Traits] = defaultdict(lambda: _Traits([], [], []))
    for ranking in rankings:
        own = traits[ranking["labeler"]]
        own.earlier.append(_share_earlier(ranking))
        own.longer.append(_share_longer(ranking))
        if ranking["content"]["seconds"] is not None:  # not every tool knows it
            own.seconds.append(ranking["content"]["seconds"])
    found: dict[str, list[str]] = {name: [] for name in traits}
    for _ in range(2):
        left_out = {name for name, reasons in found.items() if reasons}
        by_bias = {name: list(_biases(name, traits, left_out)) for name in traits}
        left_out |= {name for name, reasons in by_bias.items() if reasons}
        scores = _Scores(rankings, left_out)
        found = {name: [*by_bias[name], *scores.reasons(name)] for name in traits}
    return {name: _plain(found[name]) for name in sorted(found)}


def _plain(reasons: list[str]) -> list[str]:
    """Leave out what another reason explains: rankings by order or length look like chance."""
    return [each for each in reasons if each != CHANCE] if len(reasons) > 1 else reasons


def _biases(name: str, traits: Mapping[str, _Traits], left_out: Collection[str]) -> Iterator[str]:
    mine = traits[name]
    others = [own for other, own in traits.items() if other != name and other not in left_out]
    # Each labeler sees a random order, so that without a bias the share is one half.
    if _is_beyond(mine.earlier, 0.5) or _is_beyond(
        [_less(1.0, each) for each in mine.earlier], 0.5
    ):
        yield ORDER
    longer = _mean(share for own in others for share in own.longer)
    if longer is not None and _is_beyond(mine.longer, longer):
        yield LENGTH
    times = sorted(seconds for own in others for seconds in own.seconds)
    if len(times) >= 1 / _FAST:
        fast = times[int(_FAST * len(times))]
        if _is_beyond([float(seconds < fast) for seconds in mine.seconds], 0.0):
            yield SPEED


def _less(whole: float, part: float | None) -> float | None:
    return None if part is None else whole - part


def _share_earlier(ranking: Ranking) -> float | None:
    """Return the share of ordered pairs in which the response shown earlier is better.

    None if there is no such pair, or if the order is not known, as of imported rankings.
    """
    ranks, shown = ranking["content"]["ranks"], ranking["content"].get("shown", ())
    ordered = [
        ranks[one] < ranks[two]
        for one, two in itertools.combinations(shown, 2)
        if ranks[one] != ranks[two]
    ]
    return sum(ordered) / len(ordered) if ordered else None


def _share_longer(ranking: Ranking) -> float | None:
    """Return the share of ordered pairs in which the longer response is better."""
    ranks, texts = ranking["content"]["ranks"], ranking["row"]["responses"]
    ordered = [
        (ranks[i] < ranks[j]) == (len(texts[i]) > len(texts[j]))
        for i, j in itertools.combinations(range(len(ranks)), 2)
        if ranks[i] != ranks[j] and len(texts[i]) != len(texts[j])
    ]
    return sum(ordered) / len(ordered) if ordered else None


def _mean(shares: Iterable[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if known else None


def _is_beyond(shares: Iterable[float | None], usual: float) -> bool:
    """Return whether the mean is surely more than halfway from what is usual to 1."""
    known = [share for share in shares if share is not None]
    return bool(known) and _wilson_low(statistics.fmean(known), len(known)) > (1 + usual) / 2


def _wilson_low(share: float, count: int) -> float:
    """Return the lower end of Wilson's interval of a share.

    Shares of items, from 0 to 1, vary at most as much as yes and no, so it holds for them too.
    """
    z = _Z * _Z / count
    spread = _Z * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return (share + z / 2 - spread) / (1 + z)


class _Scores:
    """How far rankings of one item agree, for each pair of labelers and with known rankings.

    Args:
        left_out: labelers that do not count as others.
    """

    def __init__(self, rankings: Sequence[Ranking], left_out: Collection[str]):
        # For each labeler and item: (pairs ordered alike, pairs that both order) with the others
        # and with what is known, and whether another ranking is the same.
        self._shared: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._gold: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._same: dict[str, list[float]] = defaultdict(list)
        self._left_out = left_out
        by_item: dict[str, list[Ranking]] = defaultdict(list)
        for ranking in rankings:
            by_item[ranking["item"]].append(ranking)
            if ranking["gold"] is not None:
                self._add(self._gold[ranking["labeler"]], ranking, [ranking["gold"]])
        for own in by_item.values():
            for ranking in own:
                others = [
                    each["content"]["ranks"]
                    for each in own
                    if each is not ranking and each["labeler"] not in left_out
                ]
                self._add(self._shared[ranking["labeler"]], ranking, others)
                if others:
                    same = ranking["content"]["ranks"] in others
                    self._same[ranking["labeler"]].append(float(same))

    @staticmethod
    def _add(
        scores: list[tuple[int, int]], ranking: Ranking, others: Sequence[Sequence[float]]
    ) -> None:
        alike = ordered = 0
        for other in others:
            one, both = agreeing_pairs(ranking["content"]["ranks"], other)
            alike, ordered = alike + one, ordered + both
        if ordered:
            scores.append((alike, ordered))

    def reasons(self, name: str) -> Iterator[str]:
        below = above = variance = 0.0
        for scores in (self._shared, self._gold):
            others = self._of_others(scores, name)
            if len(others) < _FEWEST:
                continue
            pairs = sum(ordered for _, ordered in others)
            usual = sum(alike for alike, _ in others) / pairs
            # Items vary independently, pairs of one item do not.
            spread = sum((alike - usual * ordered) ** 2 for alike, ordered in others) / pairs
            below += sum(usual * ordered - alike for alike, ordered in scores[name])
            above += sum(alike - ordered / 2 for alike, ordered in scores[name])
            variance += spread * sum(ordered for _, ordered in scores[name])
        # Both tests: as far below the others as that, and not that far above chance.
        limit = _Z * math.sqrt(variance)
        if self._count(name) >= _FEWEST and below > limit and above < limit:
            yield CHANCE
        same = self._of_others(self._same, name)
        if same and _is_beyond(self._same[name], statistics.fmean(same)):
            yield COPIES

    def _count(self, name: str) -> int:
        return len(self._shared[name]) + len(self._gold[name])

    def _of_others(self, scores: Mapping[str, list[Score]], name: str) -> list[Score]:
        return [
            score
            for other, own in scores.items()
            if other != name and other not in self._left_out
            for score in own
        ]
