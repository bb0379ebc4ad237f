"""The labelling page's server: one process, pages of plain files, and JSON for what changes.

Requests of labelers take a millisecond or two and write one after the other anyway. So they run on
the server's own thread; a pool of threads made them several times slower. Only the report, which
reads all votes, runs on another thread.

Needs the extra `label` (fastapi, uvicorn).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field

from align.errors import ConfigError
from align.labelling.agreement import (
    flag_agreement,
    pair_agreement,
    ranking_alpha,
    rating_alpha,
    reports,
)
from align.labelling.conflicts import conflicts
from align.labelling.database import SKIPS, Labeler, Refused, Votes
from align.labelling.screening import verdicts
from align.labelling.sessions import COOKIE, Guarded, Sessions, is_encrypted, is_same_origin

PAGES = Path(__file__).parent / "pages"
_FILES = {  # what may be fetched without a token: none of it holds data
    "label.js": "text/javascript",
    "admin.js": "text/javascript",
    "text.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_MOST_TEXT = 20_000  # characters that a labeler may write


class Token(BaseModel):
    token: str = Field(max_length=200)


class Asked(BaseModel):
    """A request that changes something; the same `request` again changes nothing."""

    request: str = Field(min_length=8, max_length=64)


class OnItem(Asked):
    item: str = Field(pattern="^[0-9a-f]{64}$")


class Vote(OnItem):
    vote: dict[str, Any]


class Skip(OnItem):
    reason: str = Field(max_length=200)


class Written(Asked):
    text: str = Field(min_length=1, max_length=_MOST_TEXT)
    item: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class Failed(Exception):
    """A request that is refused with a status and a line for the labeler."""

    def __init__(self, status: int, said: str):
        super().__init__(said)
        self.status = status


def create_app(votes: Votes, prefix: str = "") -> Guarded:
    """Return the ASGI application over an open file of votes.

    Args:
        prefix: the path under which a proxy shows the pages, such as /label.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    sessions = Sessions(votes.setting("secret"))
    _pages(app, prefix)
    _session(app, votes, sessions, prefix)
    _labelling(app, votes, sessions, prefix)
    _admin(app, votes, sessions, prefix)

    @app.exception_handler(Failed)
    def failed(request: Request, error: Failed) -> Response:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(ValueError)
    def wrong(request: Request, error: ValueError) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    return Guarded(app)


def _pages(app: FastAPI, prefix: str) -> None:
    @app.get(f"{prefix}/")
    def label() -> Response:
        return FileResponse(PAGES / "label.html", media_type="text/html")

    @app.get(f"{prefix}/admin")
    def admin() -> Response:
        return FileResponse(PAGES / "admin.html", media_type="text/html")

    @app.get(f"{prefix}/static/{{name}}")
    def static(name: str) -> Response:
        if name not in _FILES:
            raise Failed(404, "there is no such file")
        return FileResponse(PAGES / name, media_type=_FILES[name])


def _who(request: Request, votes: Votes, sessions: Sessions, role: str = "") -> Labeler:
    """Return who sends a request; refuse it if that may not do it.

    Raises:
        Failed: no session, a session of another page, or a labeler who is no admin.
    """
    cookie = request.cookies.get(COOKIE, "")
    number = sessions.number(cookie)
    labeler = votes.of_number(number) if number is not None else None
    if labeler is None:
        raise Failed(401, "open the link that you were given")
    if request.method != "GET":
        if not is_same_origin(request.headers):
            raise Failed(403, "this request comes from another page")
        if not sessions.is_csrf(cookie, request.headers.get("x-csrf", "")):
            raise Failed(403, "reload the page")
    if role and labeler.role != role:
        raise Failed(403, f"only for {role}s")
    return labeler


def _session(app: FastAPI, votes: Votes, sessions: Sessions, prefix: str) -> None:
    @app.post(f"{prefix}/session")
    async def begin(request: Request, given: Token) -> Response:
        if not is_same_origin(request.headers):
            raise Failed(403, "this request comes from another page")
        address = request.client.host if request.client else ""
        if not sessions.may_try(address):
            raise Failed(429, "too many wrong links; wait a minute")
        labeler = votes.of_token(given.token)
        if labeler is None:
            sessions.was_wrong(address)
            raise Failed(401, "this link does not work; ask for a new one")
        cookie = sessions.cookie(labeler.number)
        answer = JSONResponse({"csrf": sessions.csrf(cookie)})
        secure = is_encrypted(request.headers)
        answer.set_cookie(
            COOKIE, cookie, httponly=True, samesite="strict", secure=secure, path=prefix or "/"
        )
        return answer

    @app.get(f"{prefix}/api/me")
    async def me(request: Request) -> dict[str, Any]:
        labeler = _who(request, votes, sessions)
        settings = votes.settings()
        return {
            "name": labeler.name,
            "role": labeler.role,
            "csrf": sessions.csrf(request.cookies[COOKIE]),
            "instructions": settings.instructions,
            "flags": settings.flags,
            "skips": SKIPS,
            "progress": votes.progress(labeler),
        }


def _labelling(app: FastAPI, votes: Votes, sessions: Sessions, prefix: str) -> None:
    # Reading the next item reserves it, so it is a POST, as all that changes something.
    @app.post(f"{prefix}/api/next")
    async def next_item(request: Request) -> dict[str, Any]:
        found = votes.next_item(_who(request, votes, sessions))
        if found is None:
            return {"item": None}
        return {
            "item": found.id,
            "prompt": found.row["prompt"],
            "responses": found.row["responses"],
            "shown": found.shown,
        }

    @app.post(f"{prefix}/api/vote")
    async def vote(request: Request, given: Vote) -> dict[str, Any]:
        labeler = _who(request, votes, sessions)
        return {"number": votes.vote(labeler, given.item, given.request, given.vote)}

    @app.post(f"{prefix}/api/skip")
    async def skip(request: Request, given: Skip) -> dict[str, Any]:
        labeler = _who(request, votes, sessions)
        return {"number": votes.skip(labeler, given.item, given.request, given.reason)}

    @app.post(f"{prefix}/api/undo")
    async def undo(request: Request, given: Asked) -> dict[str, Any]:
        return {"item": votes.undo(_who(request, votes, sessions), given.request)}

    @app.post(f"{prefix}/api/prompt")
    async def prompt(request: Request, given: Written) -> dict[str, Any]:
        labeler = _who(request, votes, sessions)
        return {"number": votes.write(labeler, given.request, "prompt", {"text": given.text})}

    @app.post(f"{prefix}/api/demonstration")
    async def demonstration(request: Request, given: Written) -> dict[str, Any]:
        labeler = _who(request, votes, sessions)
        if given.item is None:
            raise Failed(422, "item: expected the item whose prompt is answered")
        prompt = votes.prompt_of(given.item)
        content = {"prompt": prompt, "text": given.text}
        return {"number": votes.write(labeler, given.request, "demonstration", content)}


def _admin(app: FastAPI, votes: Votes, sessions: Sessions, prefix: str) -> None:
    @app.get(f"{prefix}/api/report")
    def report(request: Request) -> dict[str, Any]:
        _who(request, votes, sessions, "admin")
        rankings = votes.rankings()
        look = verdicts(rankings)
        return {
            "counts": votes.counts(),
            "agreement": pair_agreement(rankings),
            "flag_agreement": flag_agreement(rankings),
            "ranking_alpha": ranking_alpha(rankings),
            "rating_alpha": rating_alpha(rankings),
            "labelers": [{**each._asdict(), "look": look[each.name]} for each in reports(rankings)],
            "conflicts": conflicts(rankings, votes.adjudicated()),
        }

    @app.post(f"{prefix}/api/adjudicate")
    async def adjudicate(request: Request, given: Vote) -> dict[str, Any]:
        admin = _who(request, votes, sessions, "admin")
        return {"number": votes.adjudicate(admin, given.item, given.request, given.vote)}


def serve(votes: Votes, host: str, port: int, prefix: str, ready: Callable[[str], None]) -> None:
    """Serve the pages until the process is asked to stop.

    Args:
        port: 0 for any free one.
        ready: called with the pages' address once the server listens.

    Raises:
        ConfigError: nothing can listen at this address.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                number = self.servers[0].sockets[0].getsockname()[1]
                name = f"[{host}]" if ":" in host else host
                ready(f"http://{name}:{number}{prefix}/")

    config = uvicorn.Config(
        create_app(votes, prefix),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    with _listening(host, port) as listener:
        Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address, family=family)
    except socket.gaierror as error:
        raise ConfigError(f"--host {host}: no such address ({error.strerror})") from None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRNOTAVAIL:  # then no port helps
            raise ConfigError(
                f"--host {host}: cannot listen here ({why}); give an address of this machine"
            ) from None
        free = "; give another --port, or 0 for any free one"
        raise ConfigError(f"--port {port}: cannot listen on {host} ({why}){free}") from None
