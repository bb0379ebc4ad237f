"""Text files named on a benchmark's command line."""

from __future__ import annotations

import gzip
from pathlib import Path

PEER_PYTHON = Path(__file__).parent.parent / ".venv-words/bin/python"


def lines_of(places: list[Path]) -> list[str]:
    """Lines that hold something, of files, gzipped or not, and of all files in folders."""
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [line for file in files if file.is_file() for line in _read(file).split("\n") if line.strip()]


def _read(file: Path) -> str:
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
