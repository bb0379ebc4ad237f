"""What commands share: the parser of those that Hydra does not compose, where tables for people go, large numbers."""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from typing import NoReturn

from rich.console import Console

from align.errors import ConfigError

# What moves a cursor, sets a title or changes colours [ECMA-48, 5.4 and 5.6], also where it is not complete yet.
_ESCAPES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*(?:[@-~]|\\Z)"  # CSI, with its parameters
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c|\x1b?\\Z)"  # OSC, DCS, ...
    "|\x1b[ -/]*(?:[0-~]|\\Z)"
)

_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        command = " ".join(self.prog.split()[:2])
        raise ConfigError(f"{command}: {message}; see {command} --help")


def wide_console() -> Console:
    """As wide as the terminal; where there is none, wide enough to cut nothing that a program would look for."""
    return Console(width=None if sys.stdout.isatty() else 400)


def harmless(text: str) -> str:
    """Text without what a terminal would take as a command; of control characters, line breaks and tabs stay."""
    plain = _ESCAPES.sub("", text)
    return "".join(character for character in plain if character in "\n\t" or not _is_control(character))


def _is_control(character: str) -> bool:
    """Control characters, and those that change the direction of the text around them."""
    return unicodedata.category(character) == "Cc" or character in _DIRECTIONS


def short(number: float | None) -> str:
    """409440 as 409 k, 6738415616 as 6.74 B, in three digits; nothing for None."""
    if number is None:
        return ""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + f" {letter}"
    return f"{number:.0f}"
