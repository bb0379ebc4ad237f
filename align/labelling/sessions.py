"""Who sends a request: tokens, cookies, and what a request must have to be heard.

A labeler's link holds the token behind `#`, which browsers do not send, so that it is in no log.
The page exchanges it for a cookie that scripts cannot read. The cookie holds the labeler's number
and is signed, so that a restart of the server ends no session.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

COOKIE = "align_labeler"
SESSION_SECONDS = 12 * 3600.0
MOST_BYTES = 64 * 1024  # of a request's body
TRIES_A_MINUTE = 20  # wrong tokens from one address
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Sessions:
    """Signed cookies and the tokens against forged requests that belong to them.

    Args:
        secret: of the file of votes; it signs the cookies.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time):
        self._secret, self._clock = bytes.fromhex(secret), clock
        self._wrong: dict[str, deque[float]] = defaultdict(deque)

    def cookie(self, number: int) -> str:
        """Return the cookie of a labeler who has shown a token."""
        said = f"{number}.{int(self._clock())}.{secrets.token_hex(8)}"
        return f"{said}.{self._sign('cookie', said)}"

    def number(self, cookie: str) -> int | None:
        """Return the number of the labeler of a cookie; None if it is not ours or too old."""
        said, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("cookie", said).encode()):
            return None
        number, begun, _ = said.split(".")
        return int(number) if self._clock() - int(begun) < SESSION_SECONDS else None

    def csrf(self, cookie: str) -> str:
        """Return the token that every request with a body must send in a header."""
        return self._sign("csrf", cookie)

    def is_csrf(self, cookie: str, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.csrf(cookie).encode())

    def _sign(self, kind: str, said: str) -> str:
        return hmac.new(self._secret, f"{kind} {said}".encode(), hashlib.sha256).hexdigest()

    def may_try(self, address: str) -> bool:
        """Return whether an address may show another token: not after many wrong ones."""
        recent = self._wrong[address]
        while recent and recent[0] < self._clock() - 60:
            recent.popleft()
        return len(recent) < TRIES_A_MINUTE

    def was_wrong(self, address: str) -> None:
        self._wrong[address].append(self._clock())


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from a page of this server.

    A proxy has to pass on the `Host` that the browser sent. No header that names another host is
    believed, so that nothing depends on who can set it.
    """
    origin = urlsplit(headers.get("origin", ""))
    return bool(origin.netloc) and origin.netloc == headers.get("host", "")


def is_encrypted(headers: Mapping[str, str]) -> bool:
    """Return whether the browser sees an https page, also if a proxy ends the encryption."""
    return headers.get("origin", "").startswith("https://")


class Guarded:
    """An ASGI application with the security headers, and a limit on the size of requests."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        body, more = b"", True
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                return
            body, more = body + part.get("body", b""), part.get("more_body", False)
            if len(body) > MOST_BYTES:
                await send_with_headers(
                    {"type": "http.response.start", "status": 413, "headers": []}
                )
                await send({"type": "http.response.body", "body": b"too large"})
                return

        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return parts.pop() if parts else await receive()  # then only the end of the connection

        await self._app(scope, again, send_with_headers)
