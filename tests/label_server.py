"""The labelling server in a process of its own, and a crowd that votes while the server is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from align.errors import AlignError
from align.labelling.crowd import Browser
from align.labelling.database import Settings, Votes, item_id, wanted

ROOT = Path(__file__).resolve().parents[1]
_START_SECONDS = 60.0
_GIVE_UP_SECONDS = 120.0  # of one request, over all its tries
Answer = TypeVar("Answer")


class LabelServer:
    """`align label serve mine`, which may be killed and started again on the same port.

    Attributes:
        url: of the page.
        log: a file with all that the server printed.
    """

    def __init__(self, store: Path, prefix: str = ""):
        self._store, self._prefix, self._port = store, prefix, 0
        self.log, self.url = store / "server.log", ""

    def __enter__(self) -> LabelServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def start(self) -> None:
        command = [sys.executable, "-m", "align", "label", "serve", "mine", "--store", str(self._store)]
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port), "--prefix", self._prefix], stdout=log, stderr=log, cwd=ROOT
            )
        until = time.monotonic() + _START_SECONDS
        while not (said := self.log.read_text()[before:]).endswith("/\n"):
            assert self._process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.01)
        self.url = said.splitlines()[-1]
        self._port = int(self.url.split("/")[2].partition(":")[2])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)


class Load(NamedTuple):
    """What a crowd did, and what was stored.

    Attributes:
        acknowledged: votes that the server answered with a number.
        stored: votes in the file.
        p95: seconds within which 95 % of the answered tries were answered.
        wrong: what should not be.
    """

    acknowledged: int
    stored: int
    kills: int
    repeats: int
    requests: int
    p50: float
    p95: float
    wrong: list[str]


class _Restless(Browser):
    """A browser that goes on until it has an answer, and sometimes leaves before it has one."""

    def leave(self, path: str, content: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=30)
        headers = {**self._headers, "content-type": "application/json"}
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("POST", f"{self._path}/api/{path}", json.dumps(content), headers)


def _insist(ask: Callable[[], Answer]) -> Answer:
    until = time.monotonic() + _GIVE_UP_SECONDS
    while True:
        try:
            return ask()
        except PermissionError:
            raise
        except AlignError:
            if time.monotonic() > until:
                raise


def _rows(places: int, settings: Settings, name: str) -> list[dict[str, Any]]:
    """Items that ask for exactly `places` votes."""
    rows: list[dict[str, Any]] = []
    number = 0
    while places:
        number += 1
        responses = [f"answer {j} to {number}. " + "word " * (40 * j) for j in range(4)]
        row = {"prompt": [{"role": "user", "content": f"{name}, question {number}"}], "responses": responses}
        needed = wanted(item_id(row["prompt"], responses), settings)
        if needed <= places:
            rows.append(row)
            places -= needed
    return rows


class _Crowd:
    """Labelers that repeat some votes with the same name and some with a new name, and leave some unanswered."""

    def __init__(self, server: LabelServer, think: float, seed: int):
        self._server, self._think, self._seed = server, think, seed
        self.waited: deque[float] = deque()
        self.repeats: deque[str] = deque()
        self.wrong: deque[str] = deque()
        self.given: dict[tuple[str, str], tuple[int, list[int]]] = {}

    def label(self, name: str, token: str) -> None:
        rng = random.Random(f"{self._seed} {name}")
        browser = _insist(lambda: _Restless(self._server.url, token, self.waited.append))
        while (item := _insist(lambda: browser.post("next"))["item"]) is not None:
            _insist(lambda: browser.get("me"))  # as the page does
            time.sleep(rng.uniform(0, 2 * self._think))
            self._vote(browser, name, item, rng)

    def _vote(self, browser: _Restless, name: str, item: str, rng: random.Random) -> None:
        ranks = rng.sample([1, 2, 3, 4], 4)
        vote = {"ranks": ranks, "ratings": [4] * 4, "flags": [[]] * 4, "seconds": 2.0}
        content = {"request": secrets.token_hex(16), "item": item, "vote": vote}
        if rng.random() < 0.2:
            browser.leave("vote", content)
            self.repeats.append("left")
        number = _insist(lambda: browser.post("vote", **content))["number"]
        self.given[item, name] = number, ranks
        if rng.random() < 0.2:
            self.repeats.append("same name")
            again = _insist(lambda: browser.post("vote", **content))["number"]
            if again != number:
                self.wrong.append(f"a repeated request got number {again}, not {number}")
        if rng.random() < 0.1:
            self.repeats.append("new name")
            new = {**content, "request": secrets.token_hex(16)}
            with contextlib.suppress(PermissionError):
                _insist(lambda: browser.post("vote", **new))
                self.wrong.append("a labeler voted twice on an item")


def load(
    folder: Path, labelers: int, votes_each: int, kill_after: Iterable[float], think: float, seed: int = 0
) -> Load:
    """Let labelers vote until all is done, while the server is killed again and again.

    Args:
        votes_each: votes of a labeler, on average.
        kill_after: seconds that the server runs before it is killed, once for each kill.
        think: seconds that a labeler takes for an item, on average.
    """
    settings = Settings(overlap=3, overlap_share=0.4)
    votes = Votes.create(folder / "labels/mine.db", settings)
    rows = _rows(labelers * votes_each, settings, f"load {seed}")
    votes.add_items(rows, "train")
    tokens = {name: votes.add_labeler(name) for name in (f"labeler-{i}" for i in range(labelers))}
    done, kills = threading.Event(), 0
    with LabelServer(folder) as server, ThreadPoolExecutor(labelers) as pool:
        crowd = _Crowd(server, think, seed)
        working = [pool.submit(crowd.label, *each) for each in tokens.items()]
        for labeler in working:
            labeler.add_done_callback(lambda _: all(each.done() for each in working) and done.set())
        for seconds in kill_after:
            if done.wait(seconds):
                break
            server.kill()
            server.start()
            kills += 1
        for labeler in working:
            labeler.result()
    stored = votes.rankings()
    times = sorted(crowd.waited)
    return Load(
        acknowledged=len(crowd.given),
        stored=len(stored),
        kills=kills,
        repeats=len(crowd.repeats),
        requests=len(times),
        p50=times[len(times) // 2],
        p95=times[int(0.95 * len(times))],
        wrong=[*crowd.wrong, *_differences(votes, rows, settings, stored, crowd.given)],
    )


def _differences(
    votes: Votes,
    rows: list[dict[str, Any]],
    settings: Settings,
    stored: list[dict[str, Any]],
    given: dict[tuple[str, str], tuple[int, list[int]]],
) -> list[str]:
    """What is lost, double, changed or damaged."""
    wrong = []
    if {(r["item"], r["labeler"]): (r["number"], r["content"]["ranks"]) for r in stored} != given:
        wrong.append(f"{len(given)} votes were acknowledged, and others are stored: {len(stored)}")
    needed = {item_id(row["prompt"], row["responses"]) for row in rows}
    counts = Counter(ranking["item"] for ranking in stored)
    off = [item for item in needed if counts[item] != wanted(item, settings)]
    if off:
        wrong.append(f"{len(off)} items have more or fewer votes than wanted")
    log = sqlite3.connect(votes.path)
    (rows_of_log, of_pairs) = log.execute(
        "SELECT count(*), count(DISTINCT item || ' ' || labeler) FROM log WHERE kind = 'vote'"
    ).fetchone()
    if rows_of_log != of_pairs or rows_of_log != len(given):
        wrong.append(f"the log has {rows_of_log} votes on {of_pairs} pairs of item and labeler")
    said = [row[0] for row in log.execute("PRAGMA integrity_check")]
    if said != ["ok"]:
        wrong.append(f"integrity_check: {said[0]}")
    return wrong
