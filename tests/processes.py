"""Commands in processes of their own, and what is left of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """An align command in a session of its own; what it says on standard error can be read."""
    return subprocess.Popen(
        [sys.executable, "-m", "align", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=_listen,  # noqa: PLW1509
    )


def _listen() -> None:
    """A shell that started the tests behind it ignores SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def live(session: int, *named: object) -> Iterator[tuple[int, int, str]]:
    """Each process of a session, and each whose command line names one of `named`: its id, its parent's, its command.

    Zombies do not count: whether someone reaps orphans is the machine's affair.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent, _, of_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z" and (int(of_session) == session or any(str(name) in line for name in named)):
            yield int(entry.name), int(parent), line


def left_of(session: int, *named: object, seconds: float = 15.0) -> list[str]:
    """The commands that are still there after a while."""
    until = time.monotonic() + seconds
    while (left := [line for _, _, line in live(session, *named)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def ranks_of(parent: int) -> list[int]:
    """The processes of the ranks that a process has started, in order."""
    return sorted(pid for pid, of, line in live(-1, "align.pipeline.worker") if of == parent)
