"""Screening finds labelers that do not do their work, and leaves the others alone."""

from __future__ import annotations

import functools
import random
from collections import Counter
from pathlib import Path

import pytest
from conftest import align, mostly_slow
from label_crowds import KINDS
from label_crowds import crowd as made_crowd

from align.labelling.agreement import reports
from align.labelling.database import SENSITIVE, Settings, Votes
from align.labelling.screening import CHANCE, ORDER, verdicts

crowd = functools.cache(made_crowd)  # read only


@pytest.mark.parametrize("seed", mostly_slow([0, 1, 2], [0]))
def test_each_kind_of_bad_labeler_is_found_and_good_ones_are_not(seed: int) -> None:
    """`python tests/label_crowds.py` counts hundreds of each kind."""
    found, good = Counter[str](), 0
    for name, said in verdicts(crowd(seed, answers=6)).items():
        kind = name.split("-")[0]
        if kind == "good":
            good += bool(said)
        else:
            found[kind] += said == [KINDS[kind]]
    assert good <= 1, "of 20"
    assert found.total() >= 4, f"of 5: {found}"


@pytest.mark.parametrize("count", [0, 1, 4])
def test_few_votes_prove_nothing(count: int) -> None:
    rankings = crowd(0, answers=4)
    kept = [
        ranking
        for name in {ranking["labeler"] for ranking in rankings}
        for ranking in [each for each in rankings if each["labeler"] == name][:count]
    ]
    assert not any(verdicts(kept).values())


def test_items_with_known_rankings_find_random_ones_without_others() -> None:
    rng = random.Random(0)
    rankings = crowd(0, answers=4, gold_share=0.3)
    alone = [ranking | {"item": f"{ranking['item']} {ranking['labeler']}"} for ranking in rankings]
    rng.shuffle(alone)
    assert verdicts(alone)["random-0"] == [CHANCE]


def test_the_status_names_who_to_look_at_and_why(tmp_path: Path) -> None:
    votes = Votes.create(tmp_path / "labels/mine.db", Settings(overlap=2, overlap_share=1.0))
    votes.add_items(
        [{"prompt": [{"role": "user", "content": str(i)}], "responses": [str(j) for j in range(4)]} for i in range(40)],
        "train",
    )
    for name in ("honest", "in-order"):
        labeler = votes.of_token(votes.add_labeler(name))
        assert labeler is not None
        while (item := votes.next_item(labeler)) is not None:
            ranks = [1, 2, 3, 4] if name == "honest" else [item.shown.index(place) + 1 for place in range(4)]
            vote = {"ranks": ranks, "ratings": [4] * 4, "flags": [[]] * 4, "seconds": 9}
            votes.vote(labeler, item.id, f"request {item.id[:20]}", vote)
    lines = align("label", "status", "mine", "--store", tmp_path).stdout.splitlines()
    assert lines[0] == "40 of 40 items done; 80 rankings"
    assert lines[2].startswith("honest  40 rankings, 9 s each, agreement with others ")
    assert lines[3].startswith("in-order  40 rankings")
    assert lines[4:] == [f"  look at this labeler: {ORDER}"]


def test_sensitive_flags_are_counted_on_their_own() -> None:
    def ranking(labeler: str, flags: list[list[str]]) -> dict[str, object]:
        content = {"ranks": [1, 2], "flags": flags, "seconds": 1.0, "shown": [0, 1]}
        return {
            "item": "a",
            "labeler": labeler,
            "content": content,
            "row": {"responses": ["x", "yy"]},
            "gold": None,
        }

    one = ranking("one", [[SENSITIVE[0], SENSITIVE[1]], ["hallucination"]])
    two = ranking("two", [[SENSITIVE[1]], [SENSITIVE[2]]])
    assert [each.sensitive for each in reports([one, two])] == [pytest.approx(1 / 3)] * 2
    assert [each.sensitive for each in reports([one])] == [None]
