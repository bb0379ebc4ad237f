"""The labelling server over HTTP: who may do what, and what every answer carries."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from label_server import LabelServer, load

from align.labelling.crowd import Browser
from align.labelling.database import Settings, Votes
from align.labelling.sessions import COOKIE, SESSION_SECONDS, Sessions

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
FULL = {**BODY, "item": "0" * 64, "vote": VOTE, "reason": "x", "text": "x"}
POSTS = ("next", "vote", "skip", "undo", "prompt", "demonstration", "adjudicate")
GETS = ("me", "report")


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


def too_old(page: Page, headers: dict[str, str]) -> dict[str, str]:
    """A session that this server began, 12 hours and a minute ago."""
    past = Sessions(page.votes.setting("secret"), lambda: time.time() - SESSION_SECONDS - 60)
    cookie = past.cookie(3)
    return headers | {"cookie": f"{COOKIE}={cookie}", "x_csrf": past.csrf(cookie)}


# For each proof that a request may lack: the headers without it, from those of an admin's page.
NO_SESSION: dict[str, Callable[[Page, dict[str, str]], dict[str, str]]] = {
    "no cookie": lambda page, headers: without(headers, "cookie"),
    "an empty cookie": lambda page, headers: headers | {"cookie": f"{COOKIE}="},
    "a cookie of one's own": lambda page, headers: headers | {"cookie": f"{COOKIE}=1.99999999999.ab.cd"},
    "odd characters": lambda page, headers: headers | {"cookie": f"{COOKIE}=3.1.\xe9.\xff"},
    "another number": lambda page, headers: headers | {"cookie": headers["cookie"].replace("=3.", "=1.")},
    "another time": lambda page, headers: headers | {"cookie": headers["cookie"].replace("=3.", "=3.9")},
    "the token as cookie": lambda page, headers: headers | {"cookie": f"{COOKIE}={page.tokens['boss']}"},
    "too old": too_old,
}
FORGED: dict[str, Callable[[Page, dict[str, str]], dict[str, str]]] = {
    "no origin": lambda page, headers: without(headers, "origin"),
    "another origin": lambda page, headers: headers | {"origin": "http://example.com"},
    "a null origin": lambda page, headers: headers | {"origin": "null"},
    "another port": lambda page, headers: headers | {"origin": "http://127.0.0.1:1"},
    "an origin that a header vouches for": lambda page, headers: (
        headers | {"origin": "http://example.com", "x_forwarded_host": "example.com"}
    ),
    "no csrf": lambda page, headers: without(headers, "x_csrf"),
    "another csrf": lambda page, headers: headers | {"x_csrf": "0" * 64},
    "odd csrf": lambda page, headers: headers | {"x_csrf": "\xe9"},
    "csrf of an earlier session": lambda page, headers: headers | {"x_csrf": signed_in(page, "boss")["x_csrf"]},
    "csrf of another labeler": lambda page, headers: headers | {"x_csrf": signed_in(page, "ada")["x_csrf"]},
}


@pytest.mark.parametrize("name", [*NO_SESSION, *FORGED])
def test_whatever_lacks_a_proof_is_refused_on_every_route(page: Page, name: str) -> None:
    boss = signed_in(page, "boss")
    change, status = (NO_SESSION[name], 401) if name in NO_SESSION else (FORGED[name], 403)
    before = page.votes.counts()
    for path in POSTS:
        assert page.ask("POST", f"/api/{path}", FULL, **change(page, boss))[0] == status, path
    for path in GETS if name in NO_SESSION else ():
        assert page.ask("GET", f"/api/{path}", **change(page, boss))[0] == 401, path
    if name in FORGED and "origin" in name:
        token = {"token": page.tokens["boss"]}
        assert page.ask("POST", "/session", token, **change(page, without(boss, "cookie")))[0] == 403
    assert page.votes.counts() == before


def test_the_same_requests_with_every_proof_are_heard(page: Page) -> None:
    """Without this, the refusals above could have another reason."""
    boss = signed_in(page, "boss")
    found = {path: page.ask("POST", f"/api/{path}", FULL, **boss)[0] for path in POSTS}
    assert not {401, 403} & {*found.values()}, found
    assert [page.ask("GET", f"/api/{path}", **boss)[0] for path in GETS] == [200, 200]


def test_only_the_method_of_a_route_is_answered(page: Page) -> None:
    headers = signed_in(page, "boss")
    before = page.votes.counts()
    for path, method in [*((path, "POST") for path in POSTS), *((path, "GET") for path in GETS)]:
        for other in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} - {method}:
            assert page.ask(other, f"/api/{path}", FULL, **headers)[0] == 405, (other, path)
    assert page.ask("GET", f"/session?token={page.tokens['boss']}")[0] == 405
    assert page.votes.counts() == before


@pytest.mark.parametrize("path", [*POSTS, "session"])
def test_a_body_that_is_too_large_is_refused_unread(page: Page, path: str) -> None:
    route = "/session" if path == "session" else f"/api/{path}"
    assert page.ask("POST", route, {**FULL, "text": "x" * 70_000}, **signed_in(page, "boss"))[0] == 413


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
    status, _, report = page.ask("GET", "/api/report", **signed_in(page, "boss"))
    assert status == 200
    assert all(each["look"] == [] for each in json.loads(report)["labelers"])  # so few votes prove nothing
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


def test_only_files_of_the_page_are_served(page: Page) -> None:
    for path in ("/static/../service.py", "/static/..%2fservice.py", "/static/service.py", "/docs", "/openapi.json"):
        assert page.ask("GET", path)[0] == 404


def test_a_revoked_labeler_is_out_at_once(page: Page) -> None:
    page.tokens["cid"] = page.votes.add_labeler("cid")
    headers = signed_in(page, "cid")
    assert page.ask("POST", "/api/next", BODY, **headers)[0] == 200
    page.votes.revoke("cid")
    before = page.votes.counts()
    for path in POSTS:
        assert page.ask("POST", f"/api/{path}", FULL, **headers)[0] == 401, path
    assert page.ask("GET", "/api/me", **headers)[0] == 401
    origin = f"http://{page.host}"
    assert page.ask("POST", "/session", {"token": page.tokens["cid"]}, origin=origin)[0] == 401
    assert page.votes.counts() == before


def test_tokens_and_cookies_are_in_no_log_and_not_in_the_file(page: Page) -> None:
    """The last test of the page that all share: its log has all that the tests before asked for."""
    secrets = [*page.tokens.values()]
    for name in ("ada", "ben", "boss"):
        headers = signed_in(page, name)
        secrets += [headers["cookie"].partition("=")[2], headers["x_csrf"]]
        page.ask("POST", "/api/prompt", b"{", **headers)
        page.ask("GET", f"/nothing?token={page.tokens[name]}", **headers)
    folder = page.votes.path.parent
    kept = {file.name: file.read_bytes() for file in [page.server.log, *folder.iterdir()]}
    assert "mine.db" in kept
    for secret in secrets:
        for name, content in kept.items():
            assert secret.encode() not in content, name
    assert kept["server.log"].count(b"\n") == 1, "it prints the address and no line per request"


def test_behind_a_proxy_the_pages_have_a_prefix(tmp_path: Path) -> None:
    for page in served(tmp_path, "/label"):
        assert page.ask("GET", "/")[0] == 200
        browser = page.browser("ada")
        browser.post("vote", item=browser.post("next")["item"], vote=VOTE)
        origin = {"origin": "https://label.example", "host": "label.example"}  # the proxy passes on Host
        status, headers, _ = page.ask("POST", "/session", {"token": page.tokens["ada"]}, **origin)
        assert status == 200
        said = headers["set-cookie"].lower()
        assert "path=/label" in said
        assert "; secure" in said


def test_guesses_are_counted_and_refused(tmp_path: Path) -> None:
    """On a server of its own: this address is shut out for a minute."""
    for page in served(tmp_path):
        origin = f"http://{page.host}"
        ben = signed_in(page, "ben")
        found = [page.ask("POST", "/session", {"token": f"guess {i}"}, origin=origin)[0] for i in range(40)]
        assert found == [401] * 20 + [429] * 20
        assert page.ask("POST", "/session", {"token": page.tokens["ada"]}, origin=origin)[0] == 429
        assert page.ask("POST", "/api/next", BODY, **ben)[0] == 200  # who is in stays in


def test_a_server_that_is_killed_loses_no_vote_and_stores_none_twice(tmp_path: Path) -> None:
    """tests/soak/labelling.py does the same with 50 labelers and a kill every 2 seconds."""
    found = load(tmp_path, labelers=6, votes_each=8, kill_after=(0.7,), think=0.15)
    assert found.wrong == []
    assert found.acknowledged == found.stored == 48
    assert found.kills == 1
    assert found.repeats >= 5
