"""A process that a benchmark takes turns with: ours or a peer's, which speaks JSON lines."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

PEER_PYTHON = Path(__file__).parent.parent / ".venv-peers/bin/python"


class Side:
    """One of the two processes."""

    def __init__(self, command: list[str], settings: dict[str, Any], folder: Path, environment: dict[str, str]):
        file = folder / f"{len(list(folder.iterdir()))}.json"
        file.write_text(json.dumps(settings))
        self._process = subprocess.Popen(
            [*command, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        self.ready = self._read()
        self.answers: list[dict[str, Any]] = []

    def turn(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.answers.append(self._read())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def median(self, name: str) -> float:
        """Of all turns but the first, which warms up."""
        return statistics.median(answer[name] for answer in self.answers[1:])

    def memory(self) -> float:
        return self.answers[-1]["peak_rss_bytes"] - self.answers[-1]["import_rss_bytes"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args}: it ended early with {self._process.wait()}")
        return json.loads(line)
