"""A language model as judge: against a real server in this process whose taste is known."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from judge_server import Server, Taste, says

from align.errors import AlignError, ConfigError
from align.evals import judge
from align.evals.judge import Endpoint


def shown(asked: str) -> tuple[str, str]:
    found = re.search(r"# Answer A\n(.*)\n\n# Answer B\n(.*)", asked, re.DOTALL)
    return found[1], found[2]


def longer(asked: str) -> tuple[int, object]:
    a, b = (len(text) for text in shown(asked))
    return says(f"I thought of [[B]] at first.\n[[{'C' if a == b else 'A' if a > b else 'B'}]]")


@pytest.fixture
def serve() -> Iterator[Callable[[Taste], Server]]:
    running: list[Server] = []

    def start(taste: Taste) -> Server:
        running.append(Server(taste))
        return running[-1]

    yield start
    for server in running:
        server.close()


ONE, TWO = ["long answer", "no", "same", "x y z"], ["short", "yes it is", "abcd", "x"]
PROMPTS = ["p", "q", "r", "s"]


def compare(server: Server, folder: Path, advance: Callable[[int], None] = lambda n: None) -> judge.Verdicts:
    endpoint = Endpoint(server.url, "some-model", folder / "kept.jsonl", lambda said: None)
    return endpoint.compare(PROMPTS, ONE, TWO, advance)


def test_who_likes_length_finds_the_longer_in_both_orders(serve, tmp_path):
    server, done = serve(longer), []
    found = compare(server, tmp_path, done.append)
    assert found.scores == [1.0, 0.0, 0.5, 1.0]
    assert found.consistent == [1.0] * 4
    assert found.favoured_first == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert found.unread == 0
    assert sum(done) == 8
    assert {shown(body["messages"][0]["content"]) for body in server.asked} == {
        pair for a, b in zip(ONE, TWO, strict=True) for pair in ((a, b), (b, a))
    }
    assert {body["model"] for body in server.asked} == {"some-model"}
    assert {body["temperature"] for body in server.asked} == {0}


@pytest.mark.parametrize(("place", "first"), [("A", 1.0), ("B", 0.0)])
def test_who_always_likes_a_place_calls_every_pair_a_tie(serve, tmp_path, place, first):
    found = compare(serve(lambda asked: says(f"[[{place}]]")), tmp_path)
    assert found.scores == [0.5] * 4
    assert found.consistent == [0.0] * 4
    assert found.favoured_first == [first] * 8


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_win(serve, tmp_path):
    found = compare(serve(lambda asked: says("[[A]]" if shown(asked)[0] == ONE[0] else "[[C]]")), tmp_path)
    assert found.scores == [1.0, 0.5, 0.5, 0.5]
    assert found.consistent == [0.0, 1.0, 1.0, 1.0]


def test_what_cannot_be_made_out_is_counted_and_a_tie(serve, tmp_path):
    found = compare(serve(lambda asked: says("A is better.")), tmp_path)
    assert found.unread == 8
    assert found.scores == [0.5] * 4
    assert found.consistent == []


def test_answers_are_kept_and_not_asked_for_again(serve, tmp_path):
    server = serve(longer)
    first = compare(server, tmp_path)
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:5]) + '["torn')
    assert compare(server, tmp_path) == first
    assert len(server.asked) == 8 + 3
    other = serve(longer)
    assert compare(other, tmp_path) == first  # the same judge at another address
    assert other.asked == []


HARM = {
    "another verdict": lambda line: line.replace(']]",', ']] [[C]]",'),
    "another question": lambda line: line.replace('["', '["0', 1),
    "no JSON": lambda line: line[:-2] + "\n",
    "no list": lambda line: "5\n",
    "earlier code": lambda line: json.dumps(json.loads(line)[:2]) + "\n",
}


@pytest.mark.parametrize("harm", HARM)
def test_a_kept_answer_that_was_changed_is_asked_for_again_and_that_is_said_once(serve, tmp_path, harm):
    server, kept, told = serve(longer), tmp_path / "kept.jsonl", []
    first = compare(server, tmp_path)
    first_line, *others = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join([HARM[harm](first_line), *others]))
    endpoint = Endpoint(server.url, "some-model", kept, told.append)
    for _ in range(2):
        assert endpoint.compare(PROMPTS, ONE, TWO, lambda n: None) == first
    assert len(server.asked) == 8 + 1
    assert told == ["answers of the judge that were kept and changed since: 1; asked again"]


def test_bytes_that_are_no_text_are_no_defect(serve, tmp_path):
    server = serve(longer)
    first = compare(server, tmp_path)
    kept = tmp_path / "kept.jsonl"
    kept.write_bytes(b"\xff" + kept.read_bytes())
    assert compare(server, tmp_path) == first


def test_ratings_are_numbers_from_1_to_7(serve, tmp_path):
    server = serve(lambda asked: says("[[9]] no: [[6]]" if "good" in asked.rpartition("# Answer")[2] else "six"))
    endpoint = Endpoint(server.url, "m", tmp_path / "kept.jsonl", lambda said: None)
    first, second = endpoint.rate(["p", "q"], ["good", "bad"], lambda n: None)
    assert first == 6.0
    assert math.isnan(second)


def test_a_busy_endpoint_is_asked_again(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "WAIT", 0.0)
    refused: set[str] = set()

    def taste(asked: str) -> tuple[int, object]:
        if asked in refused:
            return longer(asked)
        refused.add(asked)
        return 429, {"error": "slow down"}

    assert compare(serve(taste), tmp_path).scores == [1.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": "who are you?"}), r"/v1/chat/completions said 401: .*who are you"),
        ((400, {"error": "no such model"}), r"said 400: .*no such model"),
        ((503, {"error": "down"}), r"failed 5 times, the last time with 503: .*the same command continues"),
        ((200, {"answer": "A"}), "does not answer as OpenAI's chat completions do"),
        ((200, b"<html>"), "does not answer as OpenAI's chat completions do"),
    ],
)
def test_an_endpoint_that_fails_is_one_line(serve, tmp_path, monkeypatch, answer, said):
    monkeypatch.setattr(judge, "WAIT", 0.0)
    with pytest.raises(AlignError, match=said) as error:
        compare(serve(lambda asked: answer), tmp_path)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ConfigError) is (answer[0] != 503)  # what may pass loses no answers


def test_a_request_that_is_refused_among_others_is_unread_and_nothing_is_lost(serve, tmp_path):
    others = threading.Event()

    def taste(asked: str) -> tuple[int, object]:
        if "yes it is" not in asked:
            others.set()
            return longer(asked)
        assert others.wait(60)  # the first answer of all may be none that refuses
        time.sleep(0.3)  # until that one is there
        return 400, {"error": "content_filter"}

    found = compare(serve(taste), tmp_path)
    assert found.unread == 2
    assert found.scores == [1.0, 0.5, 0.5, 1.0]
    assert len(found.consistent) == 3


def test_the_key_follows_no_redirect(serve, tmp_path, monkeypatch):
    monkeypatch.setenv(judge.KEY_VARIABLE, "secret-word")
    thief = serve(longer)
    server = serve(lambda asked: (302, {"location": thief.url}))
    with pytest.raises(ConfigError, match="said 302"):
        compare(server, tmp_path)
    assert thief.asked == []


def test_nobody_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "WAIT", 0.0)
    with pytest.raises(AlignError, match=r"judge\.url: http://127\.0\.0\.1:9/v1/chat/completions failed 5 times"):
        Endpoint("http://127.0.0.1:9/v1", "m", tmp_path / "kept", lambda said: None).rate(["p"], ["a"], lambda n: None)


def test_the_key_is_sent_and_kept_nowhere(serve, tmp_path, monkeypatch):
    monkeypatch.setenv(judge.KEY_VARIABLE, "secret-word")
    server = serve(longer)
    compare(server, tmp_path)
    assert {headers["Authorization"] for headers in server.headers_seen} == {"Bearer secret-word"}
    assert "secret-word" not in (tmp_path / "kept.jsonl").read_text()
    monkeypatch.delenv(judge.KEY_VARIABLE)
    compare(server, tmp_path / "..")
    (tmp_path / ".." / "kept.jsonl").unlink()
    assert "Authorization" not in server.headers_seen[-1]
