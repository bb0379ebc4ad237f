"""Freeze the votes as numbered snapshots: comparisons and demonstrations, with who gave them.

A snapshot is a folder that never changes: `labels/NAME/0001/` of the store, with
`comparisons.jsonl`, `demonstrations.jsonl`, `prompts.jsonl` and `snapshot.json`. Its digest enters
the key of what is made of it, as the digest of data does.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import ConfigError
from align.labelling.database import NAME, Votes
from align.labelling.labelled import ADJUDICATED

SNAPSHOT = "snapshot.json"
_GIVEN = ("ranks", "ratings", "flags", "note", "seconds")


class Snapshot(NamedTuple):
    """A frozen state of the votes.

    Attributes:
        digest: the sha256 of its rows.
        counts: rows of each kind, and what was left out.
    """

    number: int
    folder: Path
    digest: str
    counts: dict[str, int]


def comparisons(votes: Votes, last: int) -> list[dict[str, Any]]:
    """Return one row for each ranking; an admin's decision replaces the rankings of its item.

    Such a row has ranks alone: no single labeler's ratings, flags, note and seconds belong to it.
    """
    decided = votes.adjudicated(last)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for ranking in votes.rankings(last):
        if ranking["gold"] is not None:
            continue  # it tests the labeler; its ranking is known
        item, content = ranking["item"], ranking["content"]
        if item not in decided:
            given = {name: content[name] for name in _GIVEN} | {"labeler": ranking["labeler"]}
        elif item not in seen:
            seen.add(item)
            given = {"ranks": decided[item]["ranks"], "labeler": ADJUDICATED}
        else:
            continue
        rows.append({**ranking["row"], **given, "item": item, "split": ranking["split"]})
    return rows


def place(root: Path, name: str) -> Path:
    """Return the file of votes of a store; names that are no file names are refused.

    Raises:
        ConfigError: the name is not allowed.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name}: expected a name of at most 63 small letters, digits, '.', '_' or '-'"
        )
    return root / "labels" / f"{name}.db"


def demonstrations(votes: Votes, last: int) -> list[dict[str, Any]]:
    """Return one row for each answer that a labeler wrote."""
    return [
        {
            "messages": [*row["prompt"], {"role": "assistant", "content": row["text"]}],
            "labeler": row["labeler"],
        }
        for row in votes.written("demonstration", last)
    ]


def collected(root: Path, name: str, record: str, count: int) -> list[dict[str, Any]] | None:
    """Return the first `count` rows of a file of votes; None if there are fewer.

    Votes that come later change nothing. An undo or an admin's decision on one of these does.

    Args:
        root: of the store.
        record: comparisons or demonstrations.
    """
    path = place(root, name)
    if not path.is_file():
        return None
    votes = Votes(path)
    try:
        rows = all_rows(votes, record)
        return rows[:count] if len(rows) >= count else None
    finally:
        votes.close()


def all_rows(votes: Votes, record: str) -> list[dict[str, Any]]:
    """Return the comparisons or demonstrations that people have given so far."""
    read = demonstrations if record == "demonstrations" else comparisons
    return read(votes, votes.counts()["last"])


def freeze(votes: Votes) -> Snapshot:
    """Write a snapshot of all votes; return the newest one if nothing has changed since.

    Raises:
        StoreError: SQLite finds the votes damaged.
    """
    votes.check()
    last = votes.counts()["last"]
    root = votes.path.with_suffix("")
    known = newest(root)
    written = {
        "comparisons": comparisons(votes, last),
        "demonstrations": demonstrations(votes, last),
        "prompts": [
            {"prompt": [{"role": "user", "content": row["text"]}], "labeler": row["labeler"]}
            for row in votes.written("prompt", last)
        ],
    }
    texts = {
        name: "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        for name, rows in written.items()
    }
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    if known is not None and known.digest == digest:
        return known
    number = 1 if known is None else known.number + 1
    counts = {name: len(rows) for name, rows in written.items()}
    work = root / f".{number:04d}.tmp"
    work.mkdir(parents=True, exist_ok=True)
    said = {"number": number, "last": last, "digest": digest, "counts": counts}
    for name, text in {**texts, "snapshot": json.dumps(said, indent=1) + "\n"}.items():
        file = work / (SNAPSHOT if name == "snapshot" else f"{name}.jsonl")
        with file.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    folder = root / f"{number:04d}"
    work.rename(folder)
    return Snapshot(number, folder, digest, counts)


def newest(root: Path) -> Snapshot | None:
    """Return the newest snapshot below a folder; None if there is none."""
    found = sorted(root.glob(f"[0-9]*/{SNAPSHOT}"))
    if not found:
        return None
    said = json.loads(found[-1].read_text(encoding="utf-8"))
    return Snapshot(said["number"], found[-1].parent, said["digest"], said["counts"])
