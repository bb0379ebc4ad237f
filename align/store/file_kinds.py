"""Suffixes of data files, and a check for paths that are not ordinary files. No file is opened."""

from __future__ import annotations

import stat
from pathlib import Path

SUFFIXES = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".xml",
    ".txt",
    ".md",
)
# Suffixes of compressed files, which may follow the suffixes of text, with their first bytes.
PACKED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}
TEXTS = (".txt", ".md")  # documents; in a folder with tables these are READMEs

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


def unusual_kind(path: Path) -> str | None:
    """Return the kind of a path that is not an ordinary file, such as "a pipe" or "a device".

    None for an ordinary file and for a path that does not exist. The path is not opened: a pipe
    would wait for a writer, and reading a device may never end.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), None)
    # Files in /proc take no disk blocks. This cheap test comes first, because resolving the path of
    # every ordinary file would take most of the time.
    if kind is None and found.st_blocks == 0 and path.resolve().is_relative_to("/proc"):
        return "an entry of /proc"
    return kind
