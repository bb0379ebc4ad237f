"""How far labelers agree with each other and with rankings that are known, and what biases them."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from align.labelling.database import SENSITIVE
from align.labelling.simulated import agreeing_pairs

Ranking = Mapping[str, Any]  # of `Votes.rankings`


class Report(NamedTuple):
    """What the admin page shows of one labeler.

    Shares are None where nothing counts for them.

    Attributes:
        votes: rankings.
        agreement: share of pairs ordered alike with the other labelers of the same items.
        gold: share of pairs ordered as in items whose ranking is known.
        sensitive: share of the sensitive flags given by this labeler or another one of the same
            item that both gave.
        first: share of items whose first response in view is ranked best, over the share that
            chance gives. 1 is no bias. Imported rankings do not count: their order is not known.
        longer: share of ordered pairs in which the longer response is the better one.
        ties: share of pairs that are tied.
        seconds: median time of an item; 0 if no time is known, as for some imported rankings.
    """

    name: str
    votes: int
    agreement: float | None
    gold: float | None
    sensitive: float | None
    first: float | None
    longer: float | None
    ties: float | None
    seconds: float


def reports(rankings: Sequence[Ranking]) -> list[Report]:
    """Return a report on each labeler, by name."""
    by_labeler: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        by_labeler[ranking["labeler"]].append(ranking)
    by_item = _by_item(rankings)
    return [_report(name, by_labeler[name], by_item) for name in sorted(by_labeler)]


def _report(name: str, own: Sequence[Ranking], by_item: Mapping[str, Sequence[Ranking]]) -> Report:
    with_others, with_gold, flags = [0, 0], [0, 0], [0, 0]
    best_first, chance, longer, ordered, tied, pairs = 0.0, 0.0, 0, 0, 0, 0
    for ranking in own:
        ranks, texts = ranking["content"]["ranks"], ranking["row"]["responses"]
        for other in by_item[ranking["item"]]:
            if other["labeler"] != name:
                _add(with_others, agreeing_pairs(ranks, other["content"]["ranks"]))
                _add(flags, _same_flags(ranking, other, SENSITIVE))
        if ranking["gold"] is not None:
            _add(with_gold, agreeing_pairs(ranks, ranking["gold"]))
        best = [i for i, rank in enumerate(ranks) if rank == 1]
        if "shown" in ranking["content"]:
            best_first += (ranking["content"]["shown"][0] in best) / len(best)
            chance += 1 / len(ranks)
        for i, j in itertools.combinations(range(len(ranks)), 2):
            pairs += 1
            tied += ranks[i] == ranks[j]
            if ranks[i] != ranks[j] and len(texts[i]) != len(texts[j]):
                ordered += 1
                longer += (ranks[i] < ranks[j]) == (len(texts[i]) > len(texts[j]))
    times = [ranking["content"]["seconds"] for ranking in own]
    return Report(
        name,
        len(own),
        _share(*with_others),
        _share(*with_gold),
        _share(*flags),
        best_first / chance if chance else None,
        _share(longer, ordered),
        _share(tied, pairs),
        statistics.median([time for time in times if time is not None] or [0.0]),
    )


def _add(total: list[int], found: tuple[int, int]) -> None:
    total[0] += found[0]
    total[1] += found[1]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _by_item(rankings: Iterable[Ranking]) -> dict[str, list[Ranking]]:
    found: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        found[ranking["item"]].append(ranking)
    return found


def pair_agreement(rankings: Sequence[Ranking]) -> float | None:
    """Return the share of pairs that two labelers of one item order alike; ties do not count.

    InstructGPT's labelers reached 72.6 % (section 3.4).
    """
    total = [0, 0]
    for own in _by_item(rankings).values():
        for one, two in itertools.combinations(own, 2):
            _add(total, agreeing_pairs(one["content"]["ranks"], two["content"]["ranks"]))
    return _share(*total)


def flag_agreement(rankings: Sequence[Ranking]) -> float | None:
    """Return the share of (response, flag) on which two labelers of one item agree.

    Only flags that one of the two gave count, because most flags are never given.
    """
    total = [0, 0]
    for own in _by_item(rankings).values():
        for one, two in itertools.combinations(own, 2):
            _add(total, _same_flags(one, two))
    return _share(*total)


def _same_flags(
    one: Ranking, two: Ranking, among: Collection[str] | None = None
) -> tuple[int, int]:
    """Count the flags that both labelers gave to the same response, and that at least one gave."""
    alike = given = 0
    for a, b in zip(one["content"]["flags"], two["content"]["flags"], strict=True):
        own, other = ({f for f in each if among is None or f in among} for each in (a, b))
        alike, given = alike + len(own & other), given + len(own | other)
    return alike, given


def ranking_alpha(rankings: Sequence[Ranking]) -> float | None:
    """Return Krippendorff's alpha of the rankings: a unit is a pair of responses of an item.

    The values are better, worse and tied, as categories.
    """
    units = []
    for own in _by_item(rankings).values():
        count = len(own[0]["content"]["ranks"])
        for i, j in itertools.combinations(range(count), 2):
            signs = [each["content"]["ranks"] for each in own]
            units.append([(r[i] > r[j]) - (r[i] < r[j]) for r in signs])
    return alpha(units)


def rating_alpha(rankings: Sequence[Ranking]) -> float | None:
    """Return Krippendorff's alpha of the ratings, 1 to 7, as intervals."""
    units = []
    for own in _by_item(rankings).values():
        for values in zip(*(each["content"]["ratings"] for each in own), strict=True):
            units.append([value for value in values if value is not None])
    return alpha(units, lambda a, b: float(a - b) ** 2)


def alpha(
    units: Iterable[Sequence[Any]],
    distance: Callable[[Any, Any], float] = lambda a, b: float(a != b),
) -> float | None:
    """Return Krippendorff's alpha: 1 is agreement, 0 what chance gives; None without overlap.

    Args:
        units: for each unit the values that labelers gave it; units with one value do not count.
        distance: the squared difference of two values; by default of categories.

    Source: Krippendorff 2011, Computing Krippendorff's alpha-reliability.
    """
    rated = [list(unit) for unit in units if len(unit) > 1]
    if not rated:
        return None
    totals: Counter[Hashable] = Counter(value for unit in rated for value in unit)
    count = sum(totals.values())
    observed = sum(
        sum(distance(a, b) for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1)
        for unit in rated
    )
    expected = sum(
        totals[a] * (totals[b] - (a == b)) * distance(a, b)
        for a, b in itertools.product(totals, repeat=2)
    ) / (count - 1)
    return 1.0 - observed / expected if expected else 1.0
