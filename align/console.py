"""What the commands that Hydra does not compose share: their parser, and where tables for people go."""

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
