"""A local endpoint that answers OpenAI's chat completions by a taste that a test knows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Taste = Callable[[str], tuple[int, object]]  # what is asked -> status and body


class Server(ThreadingHTTPServer):
    """An endpoint with a taste."""

    def __init__(self, taste: Taste):
        super().__init__(("127.0.0.1", 0), Handler)
        self.taste = taste
        self.asked: list[dict] = []
        self.headers_seen: list[dict[str, str]] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()  # closes within that

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.asked.append(body)
        self.server.headers_seen.append(dict(self.headers))
        status, answer = self.server.taste(body["messages"][0]["content"])
        sent = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"{answer['location']}/chat/completions")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *arguments: object) -> None:
        pass


def says(text: str) -> tuple[int, object]:
    return 200, {"choices": [{"message": {"content": text}}]}
