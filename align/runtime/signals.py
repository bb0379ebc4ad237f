"""Stop signals: a signal sets a flag, and the running step ends at its next boundary."""

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

STOPPED_CODE = 128 + signal.SIGTERM  # the exit code a shell reports for a process ended by SIGTERM
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # scheduler, Ctrl-C, lost connection
_LOOK_SECONDS = 0.5  # between two checks whether a process is still needed
# For a process that is no longer needed to end on its own: the time of a step and a checkpoint.
_FORCED_SECONDS = 120.0


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask to stop, except ignored ones: `nohup` ignores SIGHUP."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def on_stop(act: Callable[[int, object], None]) -> Iterator[None]:
    """Let SIGTERM, Ctrl-C and SIGHUP call `act` in this block, then restore their handlers.

    Only the main thread can set handlers. In other threads nothing changes.

    Args:
        act: a signal handler, called with the signal's number and the current frame.
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
    """Return the error of a process that the signal `number` asked to stop."""
    error = Preempted(f"{said}; give the same command to continue from here")
    error.exit_code = 128 + number
    return error


class Stop:
    """A flag that SIGTERM, Ctrl-C or SIGHUP sets. The running step checks it at its next boundary.

    If the same signal comes again, it has its earlier effect: it ends the process or raises
    `KeyboardInterrupt`.

    Args:
        silent: print nothing when the signal comes.

    Attributes:
        signal: the number of the first signal; None if there was none.
        asked_at: when that came, by `time.monotonic`.
    """

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self.signal: int | None = None
        self.asked_at: float | None = None
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
            # After a lost connection there is no terminal. If the signal comes in the middle of
            # another print, print raises RuntimeError.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                print(
                    "\nstopping at the next step; again to stop at once",
                    file=sys.stderr,
                    flush=True,
                )

    def error(self, said: str = "stopped") -> Preempted:
        return stopped(self.signal or signal.SIGTERM, said)


@contextlib.contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Deliver Ctrl-C again if it came while Python ran a destructor, which drops exceptions."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # Not here: this is still inside the destructor. To the main thread, to wake it up.
        main_thread = threading.main_thread().ident
        again = threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def was_interrupted(error: BaseException) -> bool:
    """Return whether an error came of Ctrl-C: the clean-up of a library may fail and hide it."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        if isinstance(each, KeyboardInterrupt):
            return True
        seen.add(id(each))
        chain += [each.__cause__, each.__context__]
    return False


def end_when(gone: Callable[[], bool]) -> None:
    """End this process with SIGTERM once `gone()` is true, and by force if that takes too long.

    A thread calls `gone()` every half second. Linux can send a signal when the parent ends
    (PR_SET_PDEATHSIG). But it does so when the thread ends that started this process, and loky and
    submitit start processes from threads.
    """
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def watch() -> None:
        while not gone():
            time.sleep(_LOOK_SECONDS)
        # Send it to the main thread. That may wait for a lock, and a signal that another thread
        # receives would not wake it.
        signal.pthread_kill(main_thread, signal.SIGTERM)
        time.sleep(_FORCED_SECONDS)
        os._exit(STOPPED_CODE)

    threading.Thread(target=watch, daemon=True).start()


def end_with_parent(parent: int) -> None:
    """End this process when `parent`, the process that started it, ends or has already ended."""
    end_when(lambda: os.getppid() != parent)
