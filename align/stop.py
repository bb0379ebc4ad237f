"""Being asked to stop: a signal is noted, and what runs ends at its next boundary."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from align.errors import Preempted

STOPPED_CODE = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended


@contextlib.contextmanager
def on_stop(act: Callable[[int, object], None]) -> Iterator[None]:
    """Have SIGTERM and Ctrl-C call `act` with their number; what they did before, they do again afterwards.

    Only the main thread can: in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, act) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stopped(number: int, said: str = "stopped") -> Preempted:
    """The error of a process that the signal `number` asked to stop."""
    error = Preempted(f"{said}; give the same command to go on from here")
    error.exit_code = 128 + number
    return error


class Stop:
    """A flag that SIGTERM or Ctrl-C sets; the running step notices at its next boundary.

    A second signal does what it did before: it ends the process, or raises `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.asked_at: float | None = None  # of `time.monotonic`
        self._before: dict[int, Any] = {}

    def listening(self) -> contextlib.AbstractContextManager[None]:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        return on_stop(self._set)

    def _set(self, number: int, frame: object) -> None:
        self.signal, self.asked_at = number, time.monotonic()
        signal.signal(number, self._before.get(number) or signal.SIG_DFL)
        print("\nstopping at the next step; again to stop at once", file=sys.stderr, flush=True)

    def error(self, said: str = "stopped") -> Preempted:
        return stopped(self.signal or signal.SIGTERM, said)
