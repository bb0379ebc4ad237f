"""Being asked to stop: a signal is noted, and what runs ends at its next boundary."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from align.errors import Preempted

STOPPED_CODE = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a scheduler's, Ctrl-C, a lost connection
_LOOK_SECONDS = 0.5  # between two looks at whether a process is still needed
_FORCED_SECONDS = 120.0  # for a process that nobody needs to end by itself: a step and a checkpoint


def stop_signals() -> list[signal.Signals]:
    """The signals that ask to stop. One that is ignored stays ignored: `nohup` asks for that."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def on_stop(act: Callable[[int, object], None]) -> Iterator[None]:
    """Have SIGTERM, Ctrl-C and SIGHUP call `act` with their number; restore what they did before.

    Only the main thread can: in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, act) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)


def stopped(number: int, said: str = "stopped") -> Preempted:
    """The error of a process that the signal `number` asked to stop."""
    error = Preempted(f"{said}; give the same command to go on from here")
    error.exit_code = 128 + number
    return error


class Stop:
    """A flag that SIGTERM, Ctrl-C or SIGHUP sets; the running step notices at its next boundary.

    The same signal again does what it did before: it ends the process, or raises `KeyboardInterrupt`.

    Args:
        silent: print nothing when the signal comes.
    """

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self.signal: int | None = None  # the first one
        self.asked_at: float | None = None  # of `time.monotonic`
        self._before: dict[int, Any] = {}

    def listening(self) -> contextlib.AbstractContextManager[None]:
        self._before = {number: signal.getsignal(number) for number in stop_signals()}
        return on_stop(self._set)

    def _set(self, number: int, frame: object) -> None:
        signal.signal(number, self._before.get(number) or signal.SIG_DFL)
        if self.signal is None:
            self.signal, self.asked_at = number, time.monotonic()
            if self._silent:
                return
            # The terminal of a lost connection is gone, or the signal came in the middle of another line: print raises
            # RuntimeError then.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                print("\nstopping at the next step; again to stop at once", file=sys.stderr, flush=True)

    def error(self, said: str = "stopped") -> Preempted:
        return stopped(self.signal or signal.SIGTERM, said)


def end_when(gone: Callable[[], bool]) -> None:
    """End this process once `gone()` is true: as SIGTERM does, and by force where that takes too long.

    A thread looks every half a second. Linux alone could send the signal by itself (PR_SET_PDEATHSIG), but it does so
    when the thread that started this process ends, and loky and submitit start processes from threads.
    """
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def watch() -> None:
        while not gone():
            time.sleep(_LOOK_SECONDS)
        # To the main thread, which may be waiting for a lock: a signal that another thread takes does not wake it.
        signal.pthread_kill(main_thread, signal.SIGTERM)
        time.sleep(_FORCED_SECONDS)
        os._exit(STOPPED_CODE)

    threading.Thread(target=watch, daemon=True).start()


def end_with_parent(parent: int) -> None:
    """End this process with the process `parent` that started it, also where that one is gone already."""
    end_when(lambda: os.getppid() != parent)
