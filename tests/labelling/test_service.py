"""The labelling server over HTTP: who may do what, and what every answer carries."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from label_server import LabelServer, load

from align.labelling.crowd import Browser
from align.labelling.database import Settings, Votes

ROWS = [
    {"prompt": [{"role": "user", "content": f"question {i}"}], "responses": [f"{j} to {i}" for j in range(4)]}
    for i in range(30)
]
VOTE = {"ranks": [1, 2, 3, 4], "ratings": [7, 5, 3, 1], "flags": [[], [], [], []], "seconds": 2.0}


class Page(NamedTuple):
    server: LabelServer
    prefix: str
    tokens: dict[str, str]
    votes: Votes

    @property
    def host(self) -> str:
        return self.server.url.split("/")[2]

    def browser(self, name: str) -> Browser:
        return Browser(self.server.url, self.tokens[name])

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        text = body if isinstance(body, bytes) else json.dumps(body) if body is not None else None
        connection.request(method, self.prefix + path, text, {"content-type": "application/json", **named})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def served(folder: Path, prefix: str = "") -> Iterator[Page]:
    path = folder / "labels/mine.db"
    votes = Votes.create(path, Settings(overlap_share=0.0))
    votes.add_items(ROWS, "train")
    tokens = {name: votes.add_labeler(name) for name in ("ada", "ben")}
    tokens["boss"] = votes.add_labeler("boss", "admin")
    with LabelServer(folder, prefix) as server:
        yield Page(server, prefix, tokens, votes)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    yield from served(tmp_path_factory.mktemp("served"))


def signed_in(page: Page, name: str) -> dict[str, str]:
    """The headers of a page that a labeler has open."""
    origin = f"http://{page.host}"
    status, headers, body = page.ask("POST", "/session", {"token": page.tokens[name]}, origin=origin)
    assert status == 200
    cookie = headers["set-cookie"].partition(";")[0]
    return {"origin": origin, "cookie": cookie, "x_csrf": json.loads(body)["csrf"]}


def test_a_ranking_goes_through_and_is_stored(page: Page) -> None:
    browser = page.browser("ada")
    item = browser.post("next")
    before = page.votes.counts()["votes"]
    assert sorted(item["shown"]) == [0, 1, 2, 3]
    browser.post("vote", item=item["item"], vote=VOTE)
    assert page.votes.counts()["votes"] == before + 1
    assert browser.get("me")["progress"]["votes"] == 1
    assert browser.post("undo")["item"] == item["item"]
    assert page.votes.counts()["votes"] == before


BODY = {"request": "0123456789abcdef"}
POSTS = ("next", "vote", "skip", "undo", "prompt", "demonstration", "adjudicate")
WITHOUT: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], int]] = {
    "no cookie": (lambda headers: {k: v for k, v in headers.items() if k != "cookie"}, 401),
    "a cookie of one's own": (lambda headers: headers | {"cookie": "align_labeler=1.99999999999.ab.cd"}, 401),
    "another number in the cookie": (
        lambda headers: headers | {"cookie": headers["cookie"].replace("=3.", "=1.")},
        401,
    ),
    "no origin": (lambda headers: {k: v for k, v in headers.items() if k != "origin"}, 403),
    "another origin": (lambda headers: headers | {"origin": "http://example.com"}, 403),
    "no csrf": (lambda headers: {k: v for k, v in headers.items() if k != "x_csrf"}, 403),
    "another csrf": (lambda headers: headers | {"x_csrf": "0" * 64}, 403),
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", WITHOUT)
def test_what_lacks_a_proof_is_refused(page: Page, path: str, name: str) -> None:
    change, status = WITHOUT[name]
    before = page.votes.counts()
    body = {**BODY, "item": "0" * 64, "vote": VOTE, "reason": "x", "text": "x"}
    assert page.ask("POST", f"/api/{path}", body, **change(signed_in(page, "boss")))[0] == status
    assert page.votes.counts() == before


def test_reading_changes_nothing_and_what_changes_cannot_be_read(page: Page) -> None:
    headers = signed_in(page, "ada")
    for path in POSTS:
        assert page.ask("GET", f"/api/{path}", **headers)[0] == 405
    before = page.votes.path.read_bytes()
    for path in ("/", "/admin", "/api/me", "/static/label.js"):
        assert page.ask("GET", path, **headers)[0] == 200
    assert page.votes.path.read_bytes() == before


def test_a_labeler_sees_no_report_and_votes_on_nobody_else_s_item(page: Page) -> None:
    ada = signed_in(page, "ada")
    assert page.ask("GET", "/api/report", **ada)[0] == 403
    assert page.ask("GET", "/api/report", **signed_in(page, "boss"))[0] == 200
    item = page.browser("ben").post("next")["item"]
    status, _, said = page.ask("POST", "/api/vote", {**BODY, "item": item, "vote": VOTE}, **ada)
    assert status == 409
    assert b"not given to you" in said
    adjudicate = {**BODY, "item": item, "vote": VOTE}
    assert page.ask("POST", "/api/adjudicate", adjudicate, **ada)[0] == 403


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("vote", {**BODY, "item": "zz", "vote": VOTE}, 422),
        ("vote", {**BODY, "item": "0" * 64, "vote": VOTE}, 409),
        ("vote", {**BODY, "vote": VOTE}, 422),
        ("vote", {"request": "x", "item": "0" * 64, "vote": VOTE}, 422),
        ("prompt", {**BODY, "text": ""}, 422),
        ("prompt", {**BODY, "text": "x" * 20_001}, 422),
        ("prompt", {**BODY, "text": "x" * 70_000}, 413),
        ("demonstration", {**BODY, "text": "x"}, 422),
        ("prompt", b"{", 422),
        ("prompt", b"\xff\xfe", 422),
        ("prompt", b"[" * 30_000, 400),
    ],
    ids=range(11),
)
def test_what_is_not_whole_is_refused(page: Page, path: str, body: Any, status: int) -> None:
    before = page.votes.counts()
    assert page.ask("POST", f"/api/{path}", body, **signed_in(page, "ada"))[0] == status
    assert page.votes.counts() == before


@pytest.mark.parametrize("path", ["/", "/admin", "/static/label.js", "/static/none", "/api/me", "/nothing", "/session"])
def test_every_answer_has_the_headers_that_browsers_obey(page: Page, path: str) -> None:
    _, headers, _ = page.ask("GET", path)
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_the_cookie_is_kept_from_scripts_and_other_sites(page: Page) -> None:
    origin = f"http://{page.host}"
    _, headers, _ = page.ask("POST", "/session", {"token": page.tokens["ada"]}, origin=origin)
    said = headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert "secure" not in said
    _, headers, _ = page.ask(
        "POST", "/session", {"token": page.tokens["ada"]}, origin=origin, x_forwarded_proto="https"
    )
    assert "secure" in headers["set-cookie"].lower()


def test_only_files_of_the_page_are_served(page: Page) -> None:
    for path in ("/static/../service.py", "/static/..%2fservice.py", "/static/service.py", "/docs", "/openapi.json"):
        assert page.ask("GET", path)[0] == 404


def test_a_revoked_labeler_is_out_at_once(page: Page) -> None:
    page.tokens["cid"] = page.votes.add_labeler("cid")
    headers = signed_in(page, "cid")
    assert page.ask("POST", "/api/next", BODY, **headers)[0] == 200
    page.votes.revoke("cid")
    assert page.ask("POST", "/api/next", BODY, **headers)[0] == 401
    assert page.ask("GET", "/api/me", **headers)[0] == 401


def test_behind_a_proxy_the_pages_have_a_prefix(tmp_path: Path) -> None:
    for page in served(tmp_path, "/label"):
        assert page.ask("GET", "/")[0] == 200
        browser = page.browser("ada")
        browser.post("vote", item=browser.post("next")["item"], vote=VOTE)
        origin = {"origin": "https://label.example", "x_forwarded_host": "label.example", "x_forwarded_proto": "https"}
        status, headers, _ = page.ask("POST", "/session", {"token": page.tokens["ada"]}, **origin)
        assert status == 200
        assert "path=/label" in headers["set-cookie"].lower()


def test_guesses_are_counted_and_refused(tmp_path: Path) -> None:
    """The last test of the kind: it shuts this address out for a minute."""
    for page in served(tmp_path):
        origin = f"http://{page.host}"
        found = [page.ask("POST", "/session", {"token": f"guess {i}"}, origin=origin)[0] for i in range(40)]
        assert found == [401] * 20 + [429] * 20
        assert page.ask("POST", "/session", {"token": page.tokens["ada"]}, origin=origin)[0] == 429


def test_a_server_that_is_killed_loses_no_vote_and_stores_none_twice(tmp_path: Path) -> None:
    """tests/soak/labelling.py does the same with 50 labelers and a kill every 2 seconds."""
    found = load(tmp_path, labelers=6, votes_each=8, kill_seconds=0.7, think=0.2)
    assert found.wrong == []
    assert found.acknowledged == found.stored == 48
    assert found.kills >= 2
    assert found.repeats >= 5
