"""What this process does to files, by Python's audit events."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Listener = Callable[[str, tuple[object, ...]], None]

_listeners: list[Listener] = []


def _pass_on(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.mkdir", "os.rename"):
        for listener in _listeners:
            listener(event, arguments)


sys.addaudithook(_pass_on)  # there is no way to take one away, so one serves all tests


@contextlib.contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Tell `listener` of files that are opened and renamed, and of folders that are made; it may raise."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def opened_files() -> Iterator[list[str]]:
    """The files that are opened, in their order."""
    opened: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            opened.append(str(arguments[0]))

    with watching(note):
        yield opened
