"""Votes that go to Label Studio and Argilla and come back, and files that are wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import xml.etree.ElementTree as ET
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main
from align.labelling.agreement import rating_alpha, reports
from align.labelling.database import Labeler, Refused, Settings, Votes
from align.labelling.labelled import labeler_name
from align.labelling.screening import ORDER, verdicts
from align.labelling.snapshots import comparisons

TOOLS = ("label-studio", "argilla")
FLAGS = ("spam", 'a "quoted" & <odd> flag', "naïve\tflag")
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "&lt;b&gt; &amp;#x3c; ]]> -->",
    "right\u202eleft\u2066in\u2069 zero\u200bwidth\ufeff",
    "nul\x00 bell\x07 escape\x1b[31m",
    "\u2028line\u2029paragraph\r\nends\ttab  ",
    "a pair of surrogates 😀",
    "",
    "**bold** ![x](//example.com/x.png)",
)


def opened(folder: Path, name: str = "mine", **settings: Any) -> Votes:
    path = folder / f"labels/{name}.db"
    Votes.create(path, Settings(**{"flags": FLAGS, "overlap": 2, "overlap_share": 1.0, **settings})).close()
    return Votes(path)


def row(number: int, count: int, **more: Any) -> dict[str, Any]:
    texts = [HOSTILE[(number + i) % len(HOSTILE)] + f" {i}" * (i > 0) for i in range(count)]
    return {"prompt": [{"role": "user", "content": f"{number} {HOSTILE[number % 9]}"}], "responses": texts, **more}


def person(votes: Votes, name: str, role: str = "labeler") -> Labeler:
    found = votes.of_token(votes.add_labeler(name, role))
    assert found is not None
    return found


def random_vote(rng: random.Random, count: int) -> dict[str, Any]:
    return {
        "ranks": [rng.randint(1, count) for _ in range(count)],
        "ratings": [rng.randint(1, 7) for _ in range(count)],
        "flags": [rng.sample(FLAGS, rng.randint(0, len(FLAGS))) for _ in range(count)],
        "note": rng.choice(["", *HOSTILE]),
        "seconds": round(rng.uniform(0, 1000), 1),
    }


def label_all(votes: Votes, names: tuple[str, ...] = ("ada", "ben.2")) -> None:
    rng = random.Random(0)
    for labeler in [person(votes, name) for name in names]:
        while (item := votes.next_item(labeler)) is not None:
            vote = random_vote(rng, len(item.shown))
            votes.vote(labeler, item.id, f"request {item.id}", vote)


def align(folder: Path, *words: str, said: str | None = None) -> int:
    return main(["label", *words, "--store", str(folder)])


def moved(folder: Path, tool: str, name: str = "other") -> Votes:
    """The votes of `mine`, exported and imported into a new file."""
    file = folder / f"{tool}.json"
    assert align(folder, "export", "mine", "--format", tool, "--out", str(file)) == 0
    votes = opened(folder, name)
    assert align(folder, "import", name, str(file)) == 0
    return votes


def counted(votes: Votes, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    rows = comparisons(votes, votes.counts()["last"])
    kept = [{name: value for name, value in each.items() if name not in without} for each in rows]
    return sorted(kept, key=lambda each: (each["item"], each["labeler"]))


def lost(tool: str) -> tuple[str, ...]:
    """What a tool has no place for."""
    return ("seconds",) if tool == "argilla" else ()


PROMPTS = {
    "one turn": [{"role": "user", "content": "hi"}],
    "many turns": [
        {"role": "system", "content": HOSTILE[4]},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": HOSTILE[3], "weight": 0},
        {"role": "user", "content": HOSTILE[0]},
    ],
    "a tool": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": "[f()]"},
        {"role": "tool", "content": "1", "tool_call_id": "x", "name": "f"},
    ],
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("count", range(2, 10))
def test_votes_come_back_as_they_went_with_ties_ratings_flags_and_notes(tmp_path: Path, tool: str, count: int) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(i, count) for i in range(len(HOSTILE))], "train")
    label_all(votes)
    other = moved(tmp_path, tool)
    assert other.items() == votes.items()
    assert len(counted(votes)) == 2 * len(HOSTILE)
    assert counted(other, lost(tool)) == counted(votes, lost(tool))
    assert any(len(set(each["ranks"])) < count for each in counted(other))
    assert other.counts()["done"] == len(HOSTILE)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_prompts_columns_splits_and_items_without_votes_come_back(tmp_path: Path, tool: str, prompt: Any) -> None:
    votes = opened(tmp_path)
    columns = {"source": HOSTILE[3], "items": [1, {"body": None}], "data": {"fields": 1}, "split": "odd", "labelers": 3}
    for number, split in enumerate(("train", "validation", "test")):
        votes.add_items([{"prompt": prompt, "responses": ["a", str(number), "b"][: 2 + number % 2], **columns}], split)
    assert moved(tmp_path, tool).items() == votes.items()


@pytest.mark.parametrize("tool", TOOLS)
def test_an_admins_decision_goes_in_place_of_the_rankings_and_undone_and_gold_ones_do_not_go(
    tmp_path: Path, tool: str
) -> None:
    votes = opened(tmp_path, gold_share=0.5)
    votes.add_items([row(i, 3) for i in range(4)], "train")
    votes.add_items([row(9, 3, ranks=[1, 2, 3])], "train")
    label_all(votes)
    boss = person(votes, "boss", "admin")
    first = votes.rankings()[0]["item"]
    votes.adjudicate(boss, first, "request 1", {"ranks": [1, 1, 2]})
    ada = Labeler(1, "ada", "labeler")
    undone = votes.undo(ada, "request 2")
    assert any(ranking["gold"] for ranking in votes.rankings())
    other = moved(tmp_path, tool)
    (decided,) = (r for r in counted(other) if r["labeler"] == "adjudicated")
    nothing = {"ratings": [None] * 3, "flags": [[]] * 3, "note": "", "seconds": None}
    expected = [r if "ratings" in r else r | nothing for r in counted(votes)]
    assert decided["ranks"] == [1, 1, 2]
    assert counted(other, lost(tool)) == [{k: v for k, v in r.items() if k not in lost(tool)} for r in expected]
    assert len(other.items()) == 4
    assert (undone, "ada") not in {(r["item"], r["labeler"]) for r in counted(other)}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_same_file_again_changes_nothing_not_even_after_an_undo(tmp_path: Path, tool: str, capsys: Any) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(i, 4) for i in range(5)], "train")
    label_all(votes)
    other = moved(tmp_path, tool)
    again = ("import", "other", str(tmp_path / f"{tool}.json"))
    before = (counted(other), other.counts())
    capsys.readouterr()
    assert align(tmp_path, *again) == 0
    assert "0 items and 0 votes added, 10 votes were here" in capsys.readouterr().out
    assert (counted(other), other.counts()) == before
    ada = person(other, "ada")  # who had no link before
    other.undo(ada, "request 1")
    assert align(tmp_path, *again) == 0
    assert len(counted(other)) == 9
    assert other.counts()["done"] == 4
    # A file of votes that comes back to where it is from is known, too.
    assert align(tmp_path, "import", "mine", str(tmp_path / f"{tool}.json")) == 0
    assert votes.counts()["last"] == 10


def test_an_imported_vote_is_marked_and_is_no_evidence_of_what_is_not_known(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(i, 4) for i in range(5)], "train")
    label_all(votes)
    other = moved(tmp_path, "argilla")
    for ranking in other.rankings():
        assert ranking["content"]["imported"] == "argilla"
        assert "shown" not in ranking["content"]
    (report, _) = reports(other.rankings())
    assert (report.first, report.seconds) == (None, 0.0)
    assert rating_alpha(other.rankings()) == rating_alpha(votes.rankings())


def test_times_survive_label_studio(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(0, 2)], "train")
    label_all(votes)
    other = moved(tmp_path, "label-studio")
    assert {r["labeler"]: r["content"]["at"] for r in other.rankings()} == pytest.approx(
        {r["labeler"]: r["at"] for r in votes.rankings()}, abs=1e-5
    )


def test_responses_that_are_here_in_another_order_keep_their_own_ranks(tmp_path: Path) -> None:
    texts = ["a", "b", "b", "c", "d"]
    votes = opened(tmp_path)
    votes.add_items([{"prompt": [{"role": "user", "content": "q"}], "responses": texts}], "train")
    ada = person(votes, "ada")
    item = votes.next_item(ada)
    assert item is not None
    vote = {"ranks": [3, 1, 1, 2, 4], "ratings": [3, 7, 7, 5, 1], "flags": [[], [], [], [], ["spam"]]}
    votes.vote(ada, item.id, "request 1", vote)
    file = tmp_path / "file.json"
    assert align(tmp_path, "export", "mine", "--format", "argilla", "--out", str(file)) == 0
    other = opened(tmp_path, "other")
    order = ["d", "b", "a", "c", "b"]
    other.add_items([{"prompt": [{"role": "user", "content": "q"}], "responses": order}], "train")
    assert align(tmp_path, "import", "other", str(file)) == 0
    (found,) = counted(other)
    assert found["responses"] == order
    assert found["ranks"] == [4, 1, 3, 2, 1]
    assert found["ratings"] == [1, 7, 3, 5, 7]
    assert found["flags"] == [["spam"], [], [], [], []]


def test_an_item_with_more_votes_than_wanted_is_done_and_asks_nobody_until_votes_are_missing(tmp_path: Path) -> None:
    votes = opened(tmp_path, overlap=3)
    votes.add_items([row(0, 2)], "train")
    label_all(votes, ("ada", "ben", "cy"))
    file = tmp_path / "file.json"
    assert align(tmp_path, "export", "mine", "--format", "label-studio", "--out", str(file)) == 0
    other = opened(tmp_path, "other", overlap=1)
    other.add_items([row(0, 2)], "train")
    dee, cy = person(other, "dee"), person(other, "cy")
    assert other.next_item(cy) is not None  # then the import brings cy's vote on it
    assert align(tmp_path, "import", "other", str(file)) == 0
    assert other.counts()["done"] == other.counts()["items"] == 1
    assert other.next_item(dee) is other.next_item(cy) is None
    with pytest.raises(Refused, match="answered this one already"):
        other.vote(cy, counted(other)[0]["item"], "request 9", random_vote(random.Random(1), 2))
    other.undo(cy, "request 1")
    assert other.next_item(dee) is None  # two of the one wanted are left


def task(**more: Any) -> dict[str, Any]:
    items = [{"id": name, "title": f"about {name}", "body": f"text {name}"} for name in ("blog", "mdn", "wiki")]
    results = [
        {
            "from_name": "rank",
            "to_name": "results",
            "type": "ranker",
            "value": {"ranker": {"rank": ["mdn", "wiki", "blog"]}},
        }
    ]
    annotation = {
        "id": 5,
        "completed_by": 7,
        "result": results,
        "lead_time": 12.34,
        "created_at": "2024-01-02T03:04:05Z",
    }
    return {"id": 1, "data": {"prompt": "q", "items": items, "topic": "x"}, "annotations": [annotation], **more}


def record(**more: Any) -> dict[str, Any]:
    user = "0d6fb2f4-5a5d-4e3c-8a57-5c4ed9c3f0a1"
    return {
        "id": "r1",
        "fields": {"instruction": "q", "response1": "one", "response2": "two"},
        "metadata": {"topic": "x"},
        "suggestions": {},
        "responses": {"ranking": [{"value": ["response2", "response1"], "user_id": user}]},
        "vectors": {},
        "status": "completed",
        "_server_id": None,
        **more,
    }


def test_a_ranking_made_in_label_studio_is_taken_with_its_person(tmp_path: Path, capsys: Any) -> None:
    skipped = {"completed_by": 8, "was_cancelled": True, "result": []}
    later = {
        **task()["annotations"][0],
        "created_at": "2024-01-03T03:04:05Z",
        "completed_by": {"id": 7, "email": "A@b.c"},
    }
    picked = {"type": "ranker", "value": {"ranker": {"_": ["blog"], "rank_1": ["mdn", "wiki"]}}}
    some = {"completed_by": 9, "result": [picked]}
    file = tmp_path / "file.json"
    file.write_text(json.dumps([task(annotations=[*task()["annotations"], later, skipped, some])]))
    votes = opened(tmp_path)
    assert align(tmp_path, "import", "mine", str(file)) == 0
    out = capsys.readouterr().out
    assert "1 items and 2 votes added, 0 votes were here" in out
    assert "1 votes left out: skipped" in out
    assert "1 votes left out: without a full ranking" in out
    one, two = counted(votes)
    assert {one["labeler"], two["labeler"]} == {labeler_name("A@b.c"), "label-studio-7"}
    assert one["labeler"].startswith("a-b.c-")
    assert one["responses"] == ["text blog", "text mdn", "text wiki"]
    assert one["topic"] == "x"
    assert (one["ranks"], one["ratings"], one["seconds"]) == ([3, 1, 2], [None] * 3, 12.3)
    assert rating_alpha(votes.rankings()) is None
    assert votes.rankings()[0]["content"]["at"] == datetime.fromisoformat("2024-01-02T03:04:05+00:00").timestamp()


def test_of_two_annotations_of_one_person_the_newer_one_counts(tmp_path: Path, capsys: Any) -> None:
    (old,) = task()["annotations"]
    value = {"ranker": {"rank": ["blog", "mdn", "wiki"]}}
    new = {**old, "created_at": "2025-01-01T00:00:00", "result": [{**old["result"][0], "value": value}]}
    file = tmp_path / "file.json"
    file.write_text(json.dumps([task(annotations=[new, old])]))
    votes = opened(tmp_path)
    assert align(tmp_path, "import", "mine", str(file)) == 0
    assert "1 votes left out: older than another of the same labeler" in capsys.readouterr().out
    assert [each["ranks"] for each in counted(votes)] == [[1, 2, 3]]


def test_a_record_made_with_argillas_own_template_is_taken(tmp_path: Path, capsys: Any) -> None:
    draft = [{"value": ["response1", "response2"], "user_id": "u", "status": "draft"}]
    file = tmp_path / "file.json"
    file.write_text(json.dumps([record(), record(responses={"ranking": draft})]))
    votes = opened(tmp_path)
    assert align(tmp_path, "import", "mine", str(file)) == 0
    assert "1 votes left out: draft or discarded" in capsys.readouterr().out
    (found,) = counted(votes)
    assert found["prompt"] == [{"role": "user", "content": "q"}]
    assert (found["responses"], found["ranks"], found["topic"]) == (["one", "two"], [2, 1], "x")
    assert found["labeler"] == "argilla-0d6fb2f4-5a5d-4e3c-8a57-5c4ed9c3f0a1"
    assert found["seconds"] is None


@pytest.mark.parametrize(("made", "ranks"), [(task, [3, 1, 2]), (record, [2, 1])])
def test_items_come_with_add_and_their_ranks_only_as_gold(tmp_path: Path, made: Any, ranks: Any, capsys: Any) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps([made()]))
    votes, gold = opened(tmp_path), opened(tmp_path, "gold", gold_share=0.5)
    assert align(tmp_path, "add", "mine", f"path:{file}") == 0
    assert f"1 votes left out; to take them: align label import mine {file}" in capsys.readouterr().out
    assert (len(votes.items()), votes.rankings()) == (1, [])
    assert "ranks" not in votes.items()[0][0]
    assert align(tmp_path, "add", "gold", f"path:{file}", "--gold") == 0
    ada = person(gold, "ada")
    for name in ("a", "b"):
        gold.add_items([{"prompt": [{"role": "user", "content": name}], "responses": ["x", "y"]}], "train")
    while (item := gold.next_item(ada)) is not None:
        gold.vote(ada, item.id, f"request {item.id}", random_vote(random.Random(0), len(item.shown)))
    assert [r["gold"] for r in gold.rankings() if r["gold"]] == [ranks]


def changed(made: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`made` with another value at a path, as in data.items.0.body."""
    *names, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    place: Any = made
    for name in names:
        place = place[name]
    place[last] = value
    return made


WRONG = {
    "task 2: data.prompt: expected a text or messages, got nothing": changed(task(), "data.prompt", None),
    "task 2: data.prompt[0].content: expected text, got int 5": changed(
        task(), "data.prompt", [{"role": "user", "content": 5}]
    ),
    "task 2: data.items: expected a list of objects with id and body, got nothing": changed(task(), "data.items", None),
    "task 2: data.items[1].body: expected text, got list [1]": changed(task(), "data.items.1.body", [1]),
    "task 2: data.items: expected ids that differ, got mdn, mdn, wiki": changed(task(), "data.items.0.id", "mdn"),
    "task 2: data.items: expected 2 to 9 responses, got 1": changed(task(), "data.items", [{"id": 1, "body": "x"}]),
    "task 2: data.split: expected one of train, validation, test, got str": changed(task(), "data.split", "dev"),
    "task 2: annotations[0].completed_by: expected the number or the email of a user, got nothing": changed(
        task(), "annotations.0.completed_by", None
    ),
    "task 2: annotations[0].created_at: expected a date with a time, got str": changed(
        task(), "annotations.0.created_at", "now"
    ),
    "task 2: annotations[0].lead_time: expected a number of seconds, got int -1": changed(
        task(), "annotations.0.lead_time", -1
    ),
    "task 2: annotations[0].result[0].value.ranker.rank: expected ids of data.items, got str": changed(
        task(), "annotations.0.result.0.value.ranker.rank", ["x"]
    ),
    "task 2: annotations[0].result[0].value.ranker.rank: expected each id once, got list": changed(
        task(), "annotations.0.result.0.value.ranker.rank", ["mdn", "mdn"]
    ),
    "task 2: annotations[0].result[0].value.ranker: expected buckets rank_1, rank_2 and so on, or one list": changed(
        task(), "annotations.0.result.0.value.ranker", {"good": ["mdn"], "bad": ["blog", "wiki"]}
    ),
    "record 2: fields.response1: expected text, got int 1": changed(record(), "fields.response1", 1),
    "record 2: fields: response_1, response_2 and so on: expected 2 to 9 responses, got 1": changed(
        record(), "fields.response2", None
    ),
    "record 2: responses.ranking[1]: expected response_1, response_2 and so on, got str": changed(
        record(), "responses.ranking.0.value", ["response1", "x"]
    ),
    "record 2: responses.ranking[0].user_id: expected text, got nothing": changed(
        record(), "responses.ranking.0.user_id", None
    ),
    "record 2: metadata.columns: expected JSON, got str": changed(record(), "metadata.columns", "{"),
    "record 2: 'bad' is no flag of": changed(
        record(), "responses.flags_1", [{**record()["responses"]["ranking"][0], "value": ["bad"]}]
    ),
    "ratings: expected 2 whole numbers from 1 to 7": changed(
        record(), "responses.rating_1", [{**record()["responses"]["ranking"][0], "value": 8}]
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_file_is_one_line_and_nothing_is_written(tmp_path: Path, said: str, capsys: Any) -> None:
    wrong = WRONG[said]
    good = task() if "data" in wrong else record()
    file = tmp_path / "file.json"
    file.write_text(json.dumps([good, wrong]))
    votes = opened(tmp_path)
    assert align(tmp_path, "import", "mine", str(file)) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert str(file) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert (votes.items(), votes.counts()["last"], votes.labelers()) == ([], 0, [])


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("[1]", (), "the tool is not clear: expected one of 'data' (label-studio), 'fields' (argilla) in every object"),
        ("[]", (), "the tool is not clear"),
        (json.dumps([{"data": {}, "fields": {}}]), (), "the tool is not clear"),
        (
            json.dumps([record()]),
            ("--format", "label-studio"),
            "task 1: expected an object of label-studio with 'data'",
        ),
        ("[" * 100_000, (), "not JSON"),
        ("[{]", (), "not JSON"),
        ('{"prompt": "q"}', (), "expected one JSON list, of label-studio or argilla"),
        ("{}", ("--format", "argilla"), "expected one JSON list, got dict"),
    ],
    ids=range(8),
)
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, text: str, words: Any, said: str, capsys: Any) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    votes = opened(tmp_path)
    assert align(tmp_path, "import", "mine", str(file), *words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert votes.items() == []


@pytest.mark.parametrize(
    ("verb", "data", "code", "said"),
    [
        ("add", "mine/none", 3, "give candidates or comparisons of the store, or path:FILE of JSON lines"),
        ("add", "compare@0abc", 3, "give candidates or comparisons of the store, or path:FILE of JSON lines"),
        ("add", "none.jsonl", 3, "a file or folder is written path:none.jsonl, and there is none at that place"),
        ("add", "here.jsonl", 3, "did you mean path:here.jsonl?"),
        ("add", "none.parquet", 3, "align data record=comparisons source=path:none.parquet name=mine/NAME"),
        ("add", "path:none.parquet", 2, "align data record=comparisons source=path:none.parquet name=mine/NAME"),
        ("add", "hf:here/rows", 3, "align data record=comparisons source=hf:here/rows name=mine/NAME"),
        ("add", "path:none.jsonl", 2, "none.jsonl: cannot be read"),
        ("simulate", "mine/none", 3, "give candidates or comparisons of the store, which have gold scores"),
    ],
)
def test_data_that_is_not_there_is_answered_with_what_the_verb_takes(
    tmp_path: Path, verb: str, data: str, code: int, said: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.jsonl").touch()
    votes = opened(tmp_path)
    assert align(tmp_path, verb, "mine", data) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "import_model" not in captured.err
    assert captured.err.count("\n") == 1
    assert (votes.items(), votes.labelers()) == ([], [])


def test_gold_without_one_ranking_is_refused(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "file.json"
    (one,) = task()["annotations"]
    value = {"ranker": {"rank": ["blog", "mdn", "wiki"]}}
    two = {**one, "completed_by": 8, "result": [{**one["result"][0], "value": value}]}
    opened(tmp_path)
    for given, count in (([one, two], 2), ([], 0)):
        file.write_text(json.dumps([task(annotations=given)]))
        assert align(tmp_path, "add", "mine", f"path:{file}", "--gold") == 2
        assert f"expected one ranking, or a ground truth, for --gold; got {count}" in capsys.readouterr().err
    file.write_text(json.dumps([task(annotations=[one, {**two, "ground_truth": True}])]))
    assert align(tmp_path, "add", "mine", f"path:{file}", "--gold") == 0


@pytest.mark.parametrize("tool", TOOLS)
def test_an_export_replaces_no_file_and_needs_both_options(tmp_path: Path, tool: str, capsys: Any) -> None:
    opened(tmp_path)
    file = tmp_path / "file.json"
    for words in (("--format", tool), ("--out", str(file))):
        assert align(tmp_path, "export", "mine", *words) == 2
        assert "--format and --out: expected both" in capsys.readouterr().err
    file.write_text("mine")
    assert align(tmp_path, "export", "mine", "--format", tool, "--out", str(file)) == 2
    assert "exists already; give another --out" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert [each.name for each in tmp_path.glob("file*")] == ["file.json"]


def test_nothing_in_a_label_studio_file_is_shown_as_html(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(i, 9) for i in range(9)], "train")
    label_all(votes)
    moved(tmp_path, "label-studio")
    for each in json.loads((tmp_path / "label-studio.json").read_text()):
        assert all(set(item) == {"id", "title", "body"} for item in each["data"]["items"])
    config = ET.parse(tmp_path / "label-studio.xml").getroot()
    assert {"HyperText", "Html"}.isdisjoint({tag.tag for tag in config.iter()})
    choices = [tag.get("value") for tag in config.iter("Choice")]
    assert choices == [*FLAGS] * 9


def test_argilla_shows_plain_text(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(i, 9) for i in range(9)], "train")
    moved(tmp_path, "argilla")
    settings = json.loads((tmp_path / "argilla.settings.json").read_text())
    assert len(settings["fields"]) == 10
    assert not any(field["settings"]["use_markdown"] for field in settings["fields"])


def test_argilla_ranks_what_an_item_lacks_after_what_it_has(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(0, 2), row(1, 5), row(2, 3)], "train")
    label_all(votes)
    assert counted(moved(tmp_path, "argilla"), ("seconds",)) == counted(votes, ("seconds",))
    for each in json.loads((tmp_path / "argilla.json").read_text()):
        count = len(each["fields"]) - 1
        for answer in each["responses"]["ranking"]:
            ranks = [one["rank"] for one in answer["value"]]
            assert [one["value"] for one in answer["value"]] == [f"response_{i}" for i in range(1, 6)]
            assert {max(ranks[:count]) + 1} >= set(ranks[count:])
            assert max(ranks) <= 5  # Argilla's server allows no more


def test_a_labeler_without_a_link_opens_no_page(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("align.labelling.service.serve", lambda *_: None)
    file = tmp_path / "file.json"
    file.write_text(json.dumps([record()]))
    votes = opened(tmp_path)
    assert align(tmp_path, "import", "mine", str(file)) == 0
    assert [each["role"] for each in votes.labelers()] == ["imported"]
    assert align(tmp_path, "serve", "mine") == 2
    assert "no labeler has a link yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hello", "expected a JSON object with prompt and responses on each line, got 'hello'"),
        ("[1]", "expected an object with prompt and responses"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}', 'got a pair; give it as "responses": [CHOSEN, REJECTED]'),
        ('{"prompt": "q", "responses": "a"}', "responses: expected a list of texts"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, capsys: Any, line: str, expected: str) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text('{"prompt": "q", "responses": ["a", "b"]}\n' + line)
    votes = opened(tmp_path)
    assert align(tmp_path, "add", "mine", f"path:{file}") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file}:2: ")
    assert expected in said
    assert not votes.items()


def test_an_address_that_is_taken_or_wrong_is_named(tmp_path: Path, capsys: Any) -> None:
    person(opened(tmp_path), "ada")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert align(tmp_path, "serve", "mine", "--port", str(taken)) == 2
        said = f"--port {taken}: cannot listen on 127.0.0.1 (Address already in use); give another --port, or 0"
        assert said in capsys.readouterr().err
    assert align(tmp_path, "serve", "mine", "--port", "65536") == 2
    assert "--port: expected 0 to 65535, got 65536" in capsys.readouterr().err
    assert align(tmp_path, "serve", "mine", "--host", "no.such.invalid") == 2
    assert "--host no.such.invalid: no such address" in capsys.readouterr().err
    # An address of the range for documentation, which no machine has.
    assert align(tmp_path, "serve", "mine", "--host", "192.0.2.1") == 2
    said = capsys.readouterr().err
    why = os.strerror(errno.EADDRNOTAVAIL)
    assert f"--host 192.0.2.1: cannot listen here ({why}); give an address of this machine" in said
    assert "--port" not in said


def test_two_people_never_become_one_labeler() -> None:
    names = ["a@b", "a-b", "A-b", "a b", "ä-b", "", "@", "x" * 70, "x" * 71]
    assert len({labeler_name(name) for name in names}) == len(names)
    assert labeler_name("a-b") == "a-b"


def test_votes_without_a_time_break_no_page_and_no_report(tmp_path: Path) -> None:
    """Argilla knows no time and no order in which responses were shown."""
    votes = opened(tmp_path)
    votes.add_items([row(i, 4) for i in range(25)], "train")
    label_all(votes)
    other = moved(tmp_path, "argilla")
    assert other.progress(person(other, "ada"))["seconds"] is None
    assert other.progress(person(other, "ada2"))["votes"] == 0
    assert set(verdicts(other.rankings())) == {"ada", "ben.2"}
    assert align(tmp_path, "status", "other") == 0


def test_the_order_in_a_file_is_no_order_in_which_responses_were_shown(tmp_path: Path) -> None:
    votes = opened(tmp_path)
    votes.add_items([row(i, 4) for i in range(40)], "train")
    for labeler in [person(votes, name) for name in ("ada", "ben.2")]:
        while (item := votes.next_item(labeler)) is not None:
            best_first = {"ranks": [1, 2, 3, 4], "ratings": [7, 5, 3, 1], "flags": [[]] * 4, "seconds": 3}
            votes.vote(labeler, item.id, f"request {item.id}", best_first)
    other = moved(tmp_path, "label-studio")
    assert not any(ORDER in reasons for reasons in verdicts(other.rankings()).values())
