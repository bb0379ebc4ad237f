"""Being asked to stop: a signal is noted, and what runs ends at its next boundary."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

from align.errors import Preempted


class Stop:
    """A flag that SIGTERM or Ctrl-C sets; the running step notices at its next boundary. A second signal ends it."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        previous = {s: signal.signal(s, self._set) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _set(self, number: int, frame: object) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping at the next step; again to stop at once", file=sys.stderr, flush=True)

    def error(self) -> Preempted:
        error = Preempted("stopped; give the same command to go on from here")
        error.exit_code = 128 + int(self.signal or signal.SIGTERM)
        return error
