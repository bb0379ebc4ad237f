"""Read the rows of a step's logs for a report. Unreadable rows are left out and reported."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from align.store.artifacts import is_number

Row = dict[str, Any]

# Fields that a row of each file must have: finite numbers, then texts.
_NUMBERS = {
    "metrics": ("step",),
    "events": ("step",),
    "calibration": ("low", "confidence", "accuracy", "answers"),
}
_TEXTS = {"events": ("name", "message"), "samples": ("prompt",), "calibration": ("task", "model")}


def read_rows(folder: Path, name: str, is_written: bool = False) -> tuple[list[Row], list[str]]:
    """Return the rows of <name>.jsonl in a folder, and a line on those that cannot be read.

    Both are empty if the file does not exist.

    Args:
        is_written: a process may be writing the file, so an incomplete last line is not a fault.
    """
    file = folder / f"{name}.jsonl"
    if not file.is_file():
        return [], []
    *lines, last = file.read_bytes().split(b"\n")
    found = [_row(line, name) for line in (lines if is_written or not last else [*lines, last])]
    rows = [row for row in found if row is not None]
    lost = len(found) - len(rows)
    said = (
        f"{lost} line{'s' * (lost > 1)} of {folder.parent.name}/{folder.name}/{file.name} cannot be"
        " read"
    )
    return rows, [said] if lost else []


def _row(line: bytes, name: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(
        _is_finite(row.get(field)) for field in _NUMBERS.get(name, ())
    ):
        return None
    return row if all(isinstance(row.get(field), str) for field in _TEXTS.get(name, ())) else None


def _is_finite(value: object) -> bool:
    return is_number(value) and math.isfinite(value)


def is_key(name: str) -> bool:
    """Return True if a folder's name is a step's key: 64 hexadecimal digits."""
    return re.fullmatch("[0-9a-f]{64}", name) is not None
