"""What a file holds by its name, and what a path is where it is no ordinary file, found out without opening it."""

from __future__ import annotations

import stat
from pathlib import Path

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".xml", ".txt", ".md")
# May follow those that are text; each with the bytes that such a file begins with.
PACKED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}
TEXTS = (".txt", ".md")  # of a document; beside tables these are read-mes

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


def unusual_kind(path: Path) -> str | None:
    """What a path is where it is no ordinary file: "a pipe", "a device"; None of a file, and of nothing at all.

    It is not opened: a pipe would wait for a writer, and a device may never end.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), None)
    # Nothing in /proc takes a block of a disk. To resolve each of many ordinary files would take most of the time here.
    if kind is None and found.st_blocks == 0 and path.resolve().is_relative_to("/proc"):
        return "an entry of /proc"
    return kind
