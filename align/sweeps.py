"""What the members of a sweep leave behind: a file each, of its overrides, how it ended and what it made.

`SWEEP/members/NUMBER.json`; it says "running" until the member ends, so one that was killed is told from one that
failed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from align.artifacts import Artifact, ArtifactStore, write_json
from align.errors import StoreError

_FOLDER = "members"


class Member(NamedTuple):
    """The member of a sweep that runs now."""

    folder: Path  # the sweep's
    number: int
    overrides: list[str]

    @property
    def knobs(self) -> list[str]:
        """The overrides that change results."""
        return [word for word in self.overrides if word.lstrip("+").startswith(("steps.", "seed="))]


class Record(NamedTuple):
    """A member of a sweep as its file tells of it; `made` are its steps' artifacts by name, in order."""

    number: int
    knobs: dict[str, str]
    state: str  # running, done, failed
    error: str
    made: dict[str, Artifact]


@contextlib.contextmanager
def recorded(member: Member | None) -> Iterator[list[Any]]:
    """Keep a record of a member while it runs; what it made, outcomes of steps, is put into the list given."""
    outcomes: list[Any] = []
    if member is None:
        yield outcomes
        return
    folder = member.folder / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"overrides": member.overrides, "state": "running", "steps": []}
    write_json(folder / f"{member.number}.json", record)
    try:
        yield outcomes
    except Exception as error:
        write_json(folder / f"{member.number}.json", record | {"state": "failed", "error": str(error)})
        raise
    steps = [{"name": o.step.label, "stage": o.artifact.stage, "key": o.artifact.key} for o in outcomes]
    write_json(folder / f"{member.number}.json", record | {"state": "done", "steps": steps})


def sweeps(store: ArtifactStore) -> list[Path]:
    """The folders of all sweeps that left records, the oldest first."""
    return sorted(folder.parent for folder in store.root.glob(f"sweeps/*/{_FOLDER}"))


def read_sweep(store: ArtifactStore, folder: Path) -> list[Record]:
    """The members of a sweep, in order; of their overrides, those in which they differ.

    Raises:
        StoreError: the folder is not one of a sweep.
    """
    files = sorted((folder / _FOLDER).glob("*.json"), key=lambda path: int(path.stem))
    if not files:
        raise StoreError(f"{folder}: no sweep's members are recorded here")
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    overrides = [dict(word.lstrip("+").split("=", 1) for word in row["overrides"] if "=" in word) for row in rows]
    names = list(dict.fromkeys(name for given in overrides for name in given))
    varied = [name for name in names if len(rows) == 1 or len({given.get(name) for given in overrides}) > 1]
    records = []
    for path, row, given in zip(files, rows, overrides, strict=True):
        made = {step["name"]: store.get(step["stage"], step["key"]) for step in row["steps"]}
        records.append(
            Record(
                number=int(path.stem),
                knobs={name: given.get(name, "") for name in varied},
                state=row["state"],
                error=row.get("error", ""),
                made={name: artifact for name, artifact in made.items() if artifact is not None},
            )
        )
    return records
