"""Where tables for people go."""

from __future__ import annotations

import sys

from rich.console import Console


def wide_console() -> Console:
    """As wide as the terminal; where there is none, wide enough to cut nothing that a program would look for."""
    return Console(width=None if sys.stdout.isatty() else 250)
