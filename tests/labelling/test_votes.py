"""The file of votes: who gets which item, what is stored, and what is refused."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.errors import ConfigError, StoreError
from align.labelling.conflicts import conflicts
from align.labelling.database import LEASE_SECONDS, Labeler, Refused, Settings, Votes, checked_vote
from align.labelling.snapshots import collected, comparisons, freeze

K = 4


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def rows(count: int, gold: bool = False, first: int = 0) -> list[dict[str, object]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "responses": [f"answer {j} to {i}" for j in range(K)],
            **({"ranks": [1, 2, 3, 4]} if gold else {}),
        }
        for i in range(first, first + count)
    ]


def opened(folder: Path, clock: Clock | None = None, **settings: object) -> Votes:
    path = folder / "labels/mine.db"
    Votes.create(path, Settings(**settings)).close()
    return Votes(path, clock or Clock())


def people(votes: Votes, count: int) -> list[Labeler]:
    found = [votes.of_token(votes.add_labeler(f"labeler-{i}")) for i in range(count)]
    return [labeler for labeler in found if labeler is not None]


def vote(ranks: list[int] | None = None) -> dict[str, object]:
    return {"ranks": ranks or [1, 2, 2, 4], "ratings": [7, 5, 5, 1], "flags": [[]] * K, "seconds": 3.0}


@pytest.mark.parametrize(("overlap", "share"), [(1, 0.0), (3, 0.5), (2, 1.0)])
def test_every_item_gets_as_many_votes_as_wanted_though_labelers_come_go_and_are_late(
    tmp_path: Path, overlap: int, share: float
) -> None:
    clock, rng = Clock(), random.Random(f"{overlap} {share}")
    votes = opened(tmp_path, clock, overlap=overlap, overlap_share=share)
    assert votes.add_items(rows(40), "train") == (40, 0)
    held: dict[Labeler, str] = {}
    crew, number = people(votes, 6), 0
    for _ in range(5000):
        labeler = rng.choice(crew)
        clock.now += rng.choice([1, 10, LEASE_SECONDS / 2])
        if labeler not in held:
            item = votes.next_item(labeler)
            if item is not None:
                held[labeler] = item.id
        elif rng.random() < 0.7:
            number += 1
            item_id = held.pop(labeler)
            if rng.random() < 0.1:
                continue  # the page was closed
            with contextlib.suppress(Refused):
                votes.vote(labeler, item_id, f"request {number}", vote())
        if votes.counts()["done"] == 40:
            break
    given = Counter(ranking["item"] for ranking in votes.rankings())
    assert votes.counts()["done"] == len(given) == 40
    assert set(given.values()) == ({1, overlap} if 0 < share < 1 else {overlap})
    if share:
        assert sum(count == overlap for count in given.values()) >= 40 * share / 2


def test_two_labelers_at_once_never_hold_the_same_place(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap_share=0.0)
    votes.add_items(rows(30), "train")
    crew, taken = people(votes, 10), []

    def take(labeler: Labeler) -> None:
        for number in range(3):
            item = votes.next_item(labeler)
            assert item is not None
            taken.append(item.id)
            votes.vote(labeler, item.id, f"{labeler.number} {number} request", vote())

    threads = [threading.Thread(target=take, args=(labeler,)) for labeler in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 30


def test_a_labeler_who_reloads_sees_the_same_item_in_the_same_order_and_another_sees_another_order(tmp_path: Path):
    votes = opened(tmp_path, overlap=2, overlap_share=1.0)
    votes.add_items(rows(20), "train")
    one, two = people(votes, 2)
    orders = []
    for number in range(20):
        mine, theirs = votes.next_item(one), votes.next_item(two)
        assert mine == votes.next_item(one)
        assert mine is not None
        assert theirs is not None
        assert mine.id == theirs.id
        assert sorted(mine.shown) == list(range(K))
        orders.append((mine.shown, theirs.shown))
        votes.vote(one, mine.id, f"one {number} request", vote())
        votes.vote(two, theirs.id, f"two {number} request", vote())
    assert sum(a == b for a, b in orders) < 5
    assert len({tuple(a) for a, _ in orders}) > 5
    assert [r["content"]["shown"] for r in votes.rankings()] == [order for pair in orders for order in pair]


def test_the_same_request_again_stores_nothing(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items(rows(3), "train")
    (labeler,) = people(votes, 1)
    item = votes.next_item(labeler)
    assert item is not None
    number = votes.vote(labeler, item.id, "request 1", vote())
    assert votes.vote(labeler, item.id, "request 1", vote([4, 3, 2, 1])) == number
    assert votes.undo(labeler, "request 2") == votes.undo(labeler, "request 2") == item.id
    assert votes.write(labeler, "request 3", "prompt", {"text": "hi"}) == votes.write(
        labeler, "request 3", "prompt", {"text": "hi"}
    )
    assert votes.counts()["last"] == 3


def test_what_was_taken_back_is_given_again_and_counts_no_longer(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap_share=0.0)
    votes.add_items(rows(2), "train")
    one, two = people(votes, 2)
    item = votes.next_item(one)
    assert item is not None
    votes.vote(one, item.id, "request 1", vote())
    other = votes.next_item(one)
    assert other is not None
    assert other.id != item.id
    assert votes.undo(one, "request 2") == item.id
    assert votes.rankings() == []
    again = votes.next_item(one)
    assert again == item
    theirs = votes.next_item(two)  # the place that `one` left
    assert theirs is not None
    assert theirs.id == other.id
    with pytest.raises(Refused, match="nothing to take back"):
        votes.undo(two, "request 3")


def test_a_skipped_item_goes_to_another_labeler(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap_share=0.0)
    votes.add_items(rows(1), "train")
    one, two = people(votes, 2)
    item = votes.next_item(one)
    assert item is not None
    votes.skip(one, item.id, "request 1", "harmful")
    assert votes.next_item(one) is None
    assert votes.next_item(two) is not None
    with pytest.raises(Refused, match="others have the one that you skipped"):
        votes.undo(one, "request 2")
    assert votes.counts() | {"last": 0} == {
        **{"items": 1, "done": 0, "votes": 0, "skips": 1, "demonstrations": 0, "prompts": 0, "labelers": 1},
        "last": 0,
    }


def test_nobody_votes_on_what_was_given_to_another_or_is_done(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap_share=0.0)
    votes.add_items(rows(2), "train")
    one, two = people(votes, 2)
    item = votes.next_item(one)
    assert item is not None
    with pytest.raises(Refused, match="not given to you"):
        votes.vote(two, item.id, "request 1", vote())
    with pytest.raises(Refused, match="no such item"):
        votes.vote(two, "0" * 64, "request 2", vote())
    votes.vote(one, item.id, "request 3", vote())
    with pytest.raises(Refused, match="answered this one already"):
        votes.vote(one, item.id, "request 4", vote())
    assert votes.counts()["votes"] == 1


def test_items_whose_ranking_is_known_are_mixed_in_and_are_not_exported(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap_share=0.0, gold_share=0.25)
    votes.add_items(rows(12), "train")
    votes.add_items(rows(4, gold=True, first=100), "train")
    (labeler,) = people(votes, 1)
    was_gold = []
    for number in range(16):
        item = votes.next_item(labeler)
        assert item is not None
        votes.vote(labeler, item.id, f"request {number}", vote())
        was_gold.append(votes.rankings()[-1]["gold"] is not None)
    assert [i for i, gold in enumerate(was_gold) if gold] == [3, 7, 11, 15]
    assert votes.next_item(labeler) is None
    assert len(comparisons(votes, votes.counts()["last"])) == 12


def test_a_request_costs_the_same_however_many_votes_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in instructions of SQLite, by hundreds."""
    steps, costs = 0, []

    def step() -> None:
        nonlocal steps
        steps += 1

    class Counted(sqlite3.Connection):
        def __init__(self, *arguments: Any, **given: Any):
            super().__init__(*arguments, **given)
            self.set_progress_handler(step, 100)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Counted))
    votes = opened(tmp_path, overlap=2, overlap_share=1.0, gold_share=0.1)
    votes.add_items(rows(200), "train")
    votes.add_items(rows(50, gold=True, first=1000), "train")
    *crowd, labeler = people(votes, 9)
    for number in range(6):
        steps = 0
        for request in range(3):
            item = votes.next_item(labeler)
            assert item is not None
            votes.vote(labeler, item.id, f"request {number} {request}", vote())
            votes.progress(labeler)
        votes.undo(labeler, f"undo request {number}")
        costs.append(steps)
        for each in crowd:
            for request in range(6):
                item = votes.next_item(each)
                assert item is not None
                votes.vote(each, item.id, f"request {number} {request}", vote())
    assert votes.counts()["votes"] > 250
    assert 0 < costs[-1] < 1.5 * costs[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ranks": [1, 2, 3]}, "ranks: expected 4 whole numbers"),
        ({"ranks": [0, 1, 2, 3]}, "ranks: expected 4 whole numbers from 1 to 4"),
        ({"ranks": [1, 2, 3, True]}, "ranks: expected 4 whole numbers"),
        ({"ratings": [1, 2, 3, 8]}, "ratings: expected 4 whole numbers from 1 to 7"),
        ({"ratings": None}, "ratings: expected"),
        ({"flags": [["spam"], [], [], []]}, "flags: expected 4 lists of known flags"),
        ({"seconds": float("nan")}, "seconds: expected a number"),
        ({"seconds": -1}, "seconds: expected a number"),
    ],
    ids=str,
)
def test_a_vote_that_is_not_whole_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_vote({**vote(), **wrong}, K, ["hallucination"])


def test_ranks_are_without_gaps(tmp_path: Path) -> None:
    assert checked_vote(vote([2, 4, 4, 2]), K, [])["ranks"] == [1, 2, 2, 1]


def test_the_log_only_grows_whatever_is_asked_of_sqlite(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items(rows(1), "train")
    (labeler,) = people(votes, 1)
    item = votes.next_item(labeler)
    assert item is not None
    votes.vote(labeler, item.id, "request 1", vote())
    other = sqlite3.connect(votes.path)
    for query in ("DELETE FROM log", "UPDATE log SET content = '{}'"):
        with pytest.raises(sqlite3.IntegrityError, match="the log only grows"):
            other.execute(query)


def test_tokens_are_not_stored_and_a_revoked_one_opens_nothing(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    token = votes.add_labeler("ada")
    assert len(token) >= 43
    assert votes.of_token(token) is not None
    assert token.encode() not in votes.path.read_bytes()
    assert votes.path.stat().st_mode & 0o077 == 0
    votes.revoke("ada")
    assert votes.of_token(token) is None
    for name in ("ada", "Ada", "", "a" * 64, "a/b"):
        with pytest.raises(ConfigError):
            votes.add_labeler(name)


def test_files_that_are_no_votes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.db: no votes here; align label create none"):
        Votes(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database at all" * 100)
    with pytest.raises(StoreError, match=r"text\.db: not a file of votes"):
        Votes(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "other.db").executescript("CREATE TABLE a (b)")
    with pytest.raises(StoreError, match=r"other\.db: its tables have version 0, expected 1"):
        Votes(tmp_path / "other.db")
    votes = opened(tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        Votes.create(votes.path, Settings())


def test_a_snapshot_never_changes_and_is_the_same_while_nothing_new_came(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap=2, overlap_share=1.0)
    votes.add_items(rows(2), "train")
    one, two = people(votes, 2)
    (admin,) = [votes.of_token(votes.add_labeler("boss", "admin"))]
    assert admin is not None
    for labeler, ranks in ((one, [1, 2, 3, 4]), (two, [4, 3, 2, 1])):
        item = votes.next_item(labeler)
        assert item is not None
        votes.vote(labeler, item.id, "request 1", vote(ranks))
    first = freeze(votes)
    assert freeze(votes) == first
    assert (first.number, first.counts["comparisons"]) == (1, 2)
    kept = (first.folder / "comparisons.jsonl").read_bytes()
    votes.adjudicate(admin, item.id, "request 2", {"ranks": [1, 1, 4, 4], "ratings": [7, 7, 7, 7]})
    votes.write(one, "request 3", "demonstration", {"prompt": [{"role": "user", "content": "q"}], "text": "a"})
    second = freeze(votes)
    assert second.number == 2
    assert second.digest != first.digest
    assert second.counts == {"comparisons": 1, "demonstrations": 1, "prompts": 0}
    (line,) = (second.folder / "comparisons.jsonl").read_text().splitlines()
    decided = json.loads(line)
    assert (decided["ranks"], decided["labeler"]) == ([1, 1, 2, 2], "adjudicated")
    assert not {"ratings", "flags", "note", "seconds"} & {*decided}, "they are the labelers', not the admin's"
    assert (first.folder / "comparisons.jsonl").read_bytes() == kept


def test_the_first_rows_are_as_many_as_asked_for_after_an_undo_and_a_decision(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap=2, overlap_share=1.0)
    votes.add_items(rows(6), "train")
    one, two = people(votes, 2)

    def rank(labeler: Labeler, ranks: list[int]) -> str:
        item = votes.next_item(labeler)
        assert item is not None
        votes.vote(labeler, item.id, f"{labeler.name} {item.id} {ranks}", vote(ranks))
        return item.id

    def taken(count: int) -> list[tuple[str, str, list[int]]] | None:
        found = collected(tmp_path, "mine", "comparisons", count)
        return None if found is None else [(row["item"], row["labeler"], row["ranks"]) for row in found]

    first = rank(one, [1, 2, 3, 4])
    assert rank(two, [2, 1, 3, 4]) == first
    assert taken(2) == [(first, "labeler-0", [1, 2, 3, 4]), (first, "labeler-1", [2, 1, 3, 4])]
    assert taken(3) is None
    votes.undo(one, "undo")
    assert taken(2) is None
    assert rank(one, [4, 3, 2, 1]) == first
    assert taken(2) == [(first, "labeler-1", [2, 1, 3, 4]), (first, "labeler-0", [4, 3, 2, 1])]
    before = taken(2)
    second = rank(one, [1, 2, 3, 4])
    assert taken(2) == before  # what comes later changes nothing
    (boss,) = [votes.of_token(votes.add_labeler("boss", "admin"))]
    assert boss is not None
    votes.adjudicate(boss, first, "decision", {"ranks": [1, 1, 1, 2]})
    assert taken(2) == [(first, "adjudicated", [1, 1, 1, 2]), (second, "labeler-0", [1, 2, 3, 4])]
    assert taken(3) is None


def test_a_decided_item_is_done_and_the_others_get_as_many_votes_as_wanted(tmp_path: Path) -> None:
    rng = random.Random(0)
    votes = opened(tmp_path, overlap=3, overlap_share=1.0)
    votes.add_items(rows(20), "train")
    crew = people(votes, 5)
    (boss,) = [votes.of_token(votes.add_labeler("boss", "admin"))]
    assert boss is not None
    held: dict[Labeler, str] = {}
    decided: list[str] = []
    for number in range(1000):
        labeler = rng.choice(crew)
        given = Counter(ranking["item"] for ranking in votes.rankings())
        once = [item for item, count in given.items() if count == 1 and item not in decided]
        if number % 5 == 4 and len(decided) < 8 and once:
            decided.append(once[0])  # others may have it open
            votes.adjudicate(boss, decided[-1], f"decision {number}", {"ranks": [1, 2, 3, 4]})
        elif labeler in held:
            votes.vote(labeler, held.pop(labeler), f"request {number}", vote())
        elif (item := votes.next_item(labeler)) is not None:
            assert item.id not in decided
            held[labeler] = item.id
    given = Counter(ranking["item"] for ranking in votes.rankings())
    assert len(decided) == 8
    assert {given[item] for item in decided} > {1}
    assert {count for item, count in given.items() if item not in decided} == {3}
    assert votes.counts()["done"] == votes.progress(crew[0])["done"] == len(given) == 20
    assert {row["item"] for row in comparisons(votes, votes.counts()["last"])} == {*given}


def test_a_vote_on_a_decided_item_stays_and_the_page_goes_on_with_another(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap=3, overlap_share=1.0)
    votes.add_items(rows(2), "train")
    one, two, three, boss = people(votes, 4)
    first = votes.next_item(one)
    assert first is not None
    with pytest.raises(Refused, match="nobody has ranked this one"):
        votes.adjudicate(boss, first.id, "too early", {"ranks": [1, 1, 1, 1]})
    votes.vote(one, first.id, "request 1", vote())
    assert votes.next_item(two) == votes.next_item(three)._replace(shown=votes.next_item(two).shown)
    votes.adjudicate(boss, first.id, "decision", {"ranks": [1, 1, 1, 1]})
    votes.vote(two, first.id, "request 2", vote())  # two was at work on it
    later = votes.next_item(three)  # three reloads the page
    assert later is not None
    assert later.id != first.id
    for labeler in (one, two):
        with pytest.raises(Refused, match="an admin has decided this one"):
            votes.undo(labeler, "request 3")
    assert votes.counts()["votes"] == 2
    assert votes.counts()["done"] == 1


def test_items_whose_ranking_is_known_are_no_conflicts(tmp_path: Path) -> None:
    votes = opened(tmp_path, gold_share=0.5, overlap=2, overlap_share=1.0)
    votes.add_items(rows(2, gold=True), "train")
    votes.add_items(rows(8, first=2), "train")
    for number, labeler in enumerate(people(votes, 2)):
        while (item := votes.next_item(labeler)) is not None:
            votes.vote(labeler, item.id, f"request {item.id}", vote([1, 2, 3, 4][:: -1 if number else 1]))
    assert sum(ranking["gold"] is not None for ranking in votes.rankings()) == 4
    known = {ranking["item"] for ranking in votes.rankings() if ranking["gold"] is not None}
    assert not known & {found["item"] for found in conflicts(votes.rankings(), [])}


@pytest.mark.parametrize(
    ("responses", "said"),
    [
        (["only one"], "expected 2 to 9 responses, got 1"),
        ([str(i) for i in range(10)], "expected 2 to 9 responses, got 10"),
        (["half of a pair \ud800", "b"], "expected whole characters"),
    ],
)
def test_items_that_cannot_be_shown_or_exported_are_refused(tmp_path: Path, responses: list[str], said: str) -> None:
    votes = opened(tmp_path)
    with pytest.raises(ConfigError, match=said):
        votes.add_items([*rows(1), {"prompt": [{"role": "user", "content": "q"}], "responses": responses}], "train")
    assert votes.counts()["items"] == 0


def test_half_of_a_surrogate_pair_in_a_note_is_refused() -> None:
    with pytest.raises(ValueError, match="note: expected whole characters"):
        checked_vote(vote() | {"note": "\ud800"}, K, ())


@pytest.mark.slow  # SQLite waits 30 seconds for the reader
def test_a_reader_that_stays_too_long_costs_one_request_and_not_all_that_follow(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items(rows(3), "train")
    (labeler,) = people(votes, 1)
    reader = sqlite3.connect(votes.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM items").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        votes.next_item(labeler)
    reader.close()
    assert votes.next_item(labeler) is not None
