"""Simulated labelers that use the labelling page's HTTP interface as browsers do.

They rank by the gold scores of the responses, with taste and noise (`align.labelling.simulated`).
With them the loop from people to policy runs without people.
"""

from __future__ import annotations

import http.client
import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from align.errors import AlignError, ConfigError
from align.labelling.database import item_id
from align.labelling.simulated import Labelers, judge
from align.runtime.seeds import derive_seed

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # seconds before a request is sent again


class Browser:
    """A session on the labelling page.

    Requests are sent again, with the same name, if the server does not answer.

    Args:
        url: of the page, without a token.
        token: of the labeler.
        waited: called with the seconds of each request that was answered.
    """

    def __init__(
        self, url: str, token: str, waited: Callable[[float], None] = lambda seconds: None
    ):
        parts = urlsplit(url)
        self._host, self._path = parts.netloc, parts.path.rstrip("/")
        self._waited = waited
        self._headers = {"origin": f"{parts.scheme}://{parts.netloc}"}
        self._csrf, cookie = "", ""
        answer, cookie = self._ask("POST", "/session", {"token": token})
        self._headers |= {"cookie": cookie.partition(";")[0], "x-csrf": answer["csrf"]}

    def post(self, path: str, **content: Any) -> dict[str, Any]:
        """Send a request that changes something; return what the server says.

        Raises:
            PermissionError: the server refuses it.
        """
        return self._ask("POST", f"/api/{path}", {"request": secrets.token_hex(16), **content})[0]

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", f"/api/{path}", None)[0]

    def _ask(
        self, method: str, path: str, content: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], str]:
        body = None if content is None else json.dumps(content)
        headers = {**self._headers, "content-type": "application/json"}
        problem = ""
        for pause in (*_PAUSES, None):
            begun = time.monotonic()
            try:
                connection = http.client.HTTPConnection(self._host, timeout=30)
                connection.request(method, self._path + path, body, headers)
                answer = connection.getresponse()
                said = json.loads(answer.read() or b"{}")
                connection.close()
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                problem = str(error) or type(error).__name__
            else:
                if answer.status < 500:
                    self._waited(time.monotonic() - begun)
                    if answer.status != 200:
                        raise PermissionError(f"{answer.status}: {said.get('error', said)}")
                    return said, answer.getheader("set-cookie") or ""
                problem = f"status {answer.status}"
            if pause is not None:
                # Labelers who waited for the same server do not all come back at once.
                time.sleep(pause * random.uniform(0.5, 1.5))
        raise AlignError(f"http://{self._host}{self._path}: does not answer ({problem})")


def answers(url: str) -> bool:
    """Return whether a labelling page is at an address."""
    parts = urlsplit(url)
    try:
        connection = http.client.HTTPConnection(parts.netloc, timeout=10)
        connection.request("GET", f"{parts.path.rstrip('/')}/")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return False
    return answer.status == 200 and b"label.js" in body


def simulate(
    url: str, tokens: Sequence[str], rows: Sequence[Mapping[str, Any]], most: int, seed: int = 0
) -> int:
    """Let simulated labelers rank what the page gives them; return the number of rankings.

    Args:
        url: of the page.
        tokens: one for each labeler.
        rows: `prompt`, `responses` and `gold` scores of every item that may be shown.
        most: rankings of each labeler.
    """
    known = {item_id(row["prompt"], row["responses"]): row for row in rows}
    rng = np.random.default_rng(derive_seed(seed, "crowd"))
    crew = Labelers(len(tokens), 0.05, rng)
    sample = [judge(row["responses"], row["gold"]) for row in list(known.values())[:400]]
    crew.calibrate(sample, 0.73)

    def label(number: int) -> int:
        browser = Browser(url, tokens[number])
        own = Labelers(
            1, crew.tie_width, np.random.default_rng(derive_seed(seed, "labeler", number))
        )
        own.tastes, own.noise = crew.tastes[number : number + 1], crew.noise
        for done in range(most):
            item = browser.post("next")
            if item["item"] is None:
                return done
            row = known.get(item["item"])
            if row is None:
                raise ConfigError(
                    f"the page shows {item['prompt'][-1]['content'][:60]!r}, which is not in the"
                    " data whose gold scores are known; simulate with all data of the page"
                )
            gold = dict(zip(row["responses"], row["gold"], strict=True))
            scores = [gold[text] for text in item["responses"]]
            ranks = own.rank(judge(item["responses"], scores), 0)
            browser.post("vote", item=item["item"], vote=_vote(ranks, scores))
        return most

    with ThreadPoolExecutor(len(tokens)) as pool:
        return sum(pool.map(label, range(len(tokens))))


def _vote(ranks: list[int], scores: Sequence[float]) -> dict[str, Any]:
    ratings = [1 + round(6 * min(max(score, 0.0), 1.0)) for score in scores]
    return {"ranks": ranks, "ratings": ratings, "flags": [[] for _ in ranks], "seconds": 5.0}
