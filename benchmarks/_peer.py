"""A process beside which a benchmark runs: ours or a peer's.

Its answers come by a pipe of their own, whose descriptor is in the environment variable ANSWERS_FD. Its standard output
is no place for them: libraries print there too (W&B in its offline mode, for one).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PEER_PYTHON = Path(__file__).parent.parent / ".venv-peers/bin/python"
_SHOWN = 2000  # characters of what a process printed, where it ended early


def _start(
    command: Sequence[str], environment: Mapping[str, str], given: IO[str] | int, printed: IO[str]
) -> tuple[subprocess.Popen[str], IO[str]]:
    """A process, and its answers."""
    read, write = os.pipe()
    process = subprocess.Popen(
        command,
        stdin=given,
        stdout=printed,
        stderr=printed,
        text=True,
        env={**os.environ, **environment, "ANSWERS_FD": str(write)},
        pass_fds=(write,),
    )
    os.close(write)  # so that the answers end when the process does
    return process, os.fdopen(read, encoding="utf-8")


def _ended_early(process: subprocess.Popen[str], printed: IO[str]) -> SystemExit:
    code = process.wait()
    printed.seek(0)
    return SystemExit(f"{process.args}: it ended early with {code}\n{printed.read()[-_SHOWN:]}")


def asked(command: Sequence[str], given: str = "", environment: Mapping[str, str] | None = None) -> list[str]:
    """The lines with which a process answers what it is given on standard input, once it has ended."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.write(given)
        file.seek(0)
        process, answers = _start(command, environment or {}, file, printed)
        with answers:
            lines = answers.read().splitlines()
        if process.wait():
            raise _ended_early(process, printed)
    return lines


class Side:
    """One of the processes that take turns, in JSON lines."""

    def __init__(self, command: list[str], settings: dict[str, Any], folder: Path, environment: dict[str, str]):
        number = len(list(folder.glob("*.json")))
        file = folder / f"{number}.json"
        file.write_text(json.dumps(settings))
        self._printed = (folder / f"{number}.txt").open("w+")
        self._process, self._answers = _start([*command, str(file)], environment, subprocess.PIPE, self._printed)
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
        self._answers.close()
        self._printed.close()

    def median(self, name: str) -> float:
        """Of all turns but the first, which warms up."""
        return statistics.median(answer[name] for answer in self.answers[1:])

    def memory(self) -> float:
        return self.answers[-1]["peak_rss_bytes"] - self.answers[-1]["import_rss_bytes"]

    def _read(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise _ended_early(self._process, self._printed)
        return json.loads(line)
