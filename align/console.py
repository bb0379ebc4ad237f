"""What commands share: the parser of those that Hydra does not compose, where tables for people go, large numbers."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from rich.console import Console

from align.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        command = " ".join(self.prog.split()[:2])
        raise ConfigError(f"{command}: {message}; see {command} --help")


def wide_console() -> Console:
    """As wide as the terminal; where there is none, wide enough to cut nothing that a program would look for."""
    return Console(width=None if sys.stdout.isatty() else 400)


def short(number: float | None) -> str:
    """409440 as 409 k, 6738415616 as 6.74 B, in three digits; nothing for None."""
    if number is None:
        return ""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + f" {letter}"
    return f"{number:.0f}"
