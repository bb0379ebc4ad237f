"""How responses repeat themselves and each other, counted in tokens."""

from __future__ import annotations

from collections.abc import Sequence


def repeated_share(responses: Sequence[Sequence[int]], n: int = 3) -> float:
    """Return the mean fraction of a response's n-grams that it has said before.

    This is seq-rep-n of Welleck et al. 2020 (Neural Text Generation with Unlikelihood Training). A
    response without n-grams counts as 0.

    Args:
        responses: token ids, [B] of any lengths.
    """
    shares = []
    for ids in responses:
        grams = _grams(ids, n)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


def distinct_share(responses: Sequence[Sequence[int]], n: int = 2) -> float:
    """Return the number of different n-grams of all responses, divided by the number of n-grams.

    Li et al. 2016 (A Diversity-Promoting Objective Function) divide by the number of tokens. It
    falls with the number of responses, so only compare equally many. 1 if there are no n-grams.
    """
    grams = [gram for ids in responses for gram in _grams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _grams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
