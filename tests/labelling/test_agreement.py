"""Agreement against published figures, and biases that were put in."""

from __future__ import annotations

import random

import pytest

from align.labelling.agreement import (
    alpha,
    flag_agreement,
    pair_agreement,
    ranking_alpha,
    rating_alpha,
    reports,
)
from align.labelling.conflicts import conflicts

# Krippendorff 2011, section C: four observers, twelve units, values that are missing.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
UNITS = [[value for value in unit if value is not None] for unit in zip(*OBSERVERS, strict=True)]


def test_alpha_is_that_of_krippendorff_s_example() -> None:
    assert alpha(UNITS) == pytest.approx(0.743, abs=5e-4)
    assert alpha(UNITS, lambda a, b: float(a - b) ** 2) == pytest.approx(0.849, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert alpha([[1, 1], [2, 2], [3, 3]]) == 1.0
    assert alpha([[1], [2]]) is None
    rng = random.Random(0)
    assert alpha([[rng.randrange(3), rng.randrange(3)] for _ in range(20_000)]) == pytest.approx(0.0, abs=0.02)
    assert alpha([[0, 1], [1, 0]]) == pytest.approx(-0.5)  # by hand: observed 1, expected 2/3


def ranking(item: str, labeler: str, ranks: list[int], shown: list[int] | None = None, **more: object):
    count = len(ranks)
    texts = more.pop("texts", [f"{'long ' * i}answer" for i in range(count)])
    content = {
        "ranks": ranks,
        "ratings": more.pop("ratings", [4] * count),
        "flags": more.pop("flags", [[]] * count),
        "seconds": more.pop("seconds", 5.0),
        "shown": shown or list(range(count)),
    }
    row = {"prompt": [{"role": "user", "content": item}], "responses": texts}
    return {"item": item, "labeler": labeler, "content": content, "row": row, "gold": more.pop("gold", None)}


def test_agreement_by_hand() -> None:
    votes = [
        ranking("a", "one", [1, 2, 3], flags=[["x"], [], ["y"]], ratings=[7, 4, 1]),
        ranking("a", "two", [1, 3, 2], flags=[["x", "y"], [], []], ratings=[7, 3, 2]),
        ranking("b", "one", [1, 1, 2]),
        ranking("b", "three", [2, 1, 3]),
        ranking("c", "two", [1, 2, 3]),
    ]
    # a: two of three pairs alike; b: one pair is tied for one, the other two alike.
    assert pair_agreement(votes) == pytest.approx(4 / 5)
    assert flag_agreement(votes) == pytest.approx(1 / 3)
    assert pair_agreement(votes[:1]) is None
    assert ranking_alpha(votes) is not None
    assert rating_alpha(votes[:2]) == pytest.approx(alpha([[7, 7], [4, 3], [1, 2]], lambda a, b: float(a - b) ** 2))
    (found,) = conflicts(votes, [])
    assert (found["item"], found["share"]) == ("a", pytest.approx(1 / 3))
    assert conflicts(votes, ["a"]) == []


def test_each_labeler_s_biases_are_seen() -> None:
    rng = random.Random(1)
    votes = []
    for number in range(200):
        texts = ["word " * rng.randrange(1, 50) for _ in range(4)]
        truth = rng.sample([1, 2, 3, 4], 4)
        for name in ("fair", "first", "long", "random"):
            shown = rng.sample(range(4), 4)
            if name == "fair":
                ranks = truth
            elif name == "first":
                ranks = [shown.index(place) + 1 for place in range(4)]
            elif name == "long":
                order = sorted(range(4), key=lambda i: -len(texts[i]))
                ranks = [order.index(place) + 1 for place in range(4)]
            else:
                ranks = rng.sample([1, 2, 3, 4], 4)
            seconds = 1.0 if name == "random" else 20.0
            votes.append(ranking(str(number), name, ranks, shown, texts=texts, gold=truth, seconds=seconds))
    by_name = {each.name: each for each in reports(votes)}
    assert by_name["fair"].gold == 1.0
    assert by_name["fair"].first == pytest.approx(1.0, abs=0.25)
    assert by_name["first"].first == pytest.approx(4.0)
    assert by_name["long"].longer == 1.0
    assert by_name["fair"].longer == pytest.approx(0.5, abs=0.06)
    assert by_name["random"].gold == pytest.approx(0.5, abs=0.06)
    assert by_name["random"].seconds == 1.0
    assert by_name["fair"].ties == 0.0
