"""What the members of a sweep leave behind: a file each, of its overrides, how it ended and what it made.

`SWEEP/members/NUMBER.json` says "running" until the member ends, and NUMBER.lock is held for as long: where nobody
holds it any more, the member was killed. Nothing has to be written by a process that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import Preempted, StoreError
from align.store.artifacts import Artifact, ArtifactStore, write_json

_FOLDER = "members"
KILLED = 137  # what a shell says of a process that ended by SIGKILL


class Member(NamedTuple):
    """The member of a sweep that runs now."""

    folder: Path  # the sweep's
    number: int
    overrides: list[str]
    log: str | None = None  # the folder with what it prints, where that is not the console

    @property
    def knobs(self) -> list[str]:
        """The overrides that change results."""
        return [word for word in self.overrides if word.lstrip("+").startswith(("steps.", "seed="))]


class Record(NamedTuple):
    """A member of a sweep as its file tells of it; `made` are its steps' artifacts by name, in order."""

    number: int
    knobs: dict[str, str]
    state: str  # running, done, failed, stopped, killed
    error: str
    made: dict[str, Artifact]
    tries: int = 1


class Fate(NamedTuple):
    """How far a member has come: what its file says, and whether the process that wrote it still is."""

    state: str  # as a record's
    code: int  # its exit code; 0 while it runs
    error: str
    pid: int | None  # of the process that runs it, where that is on this machine
    log: str | None


@contextlib.contextmanager
def recorded(member: Member | None) -> Iterator[list[Any]]:
    """Keep a record of a member while it runs; what it made, outcomes of steps, is put into the list given."""
    outcomes: list[Any] = []
    if member is None:
        yield outcomes
        return
    file = member.folder / _FOLDER / f"{member.number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"overrides": member.overrides, "state": "running", "steps": [], "log": member.log}
    record |= {"pid": os.getpid(), "host": socket.gethostname(), "tries": _read(file).get("tries", 0) + 1}
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_json(file, record)
        try:
            yield outcomes
        except Preempted as error:
            write_json(file, record | {"state": "stopped", "code": error.exit_code})
            raise
        except Exception as error:
            code = getattr(error, "exit_code", 1)
            write_json(file, record | {"state": "failed", "error": str(error), "code": code})
            raise
        steps = [{"name": o.step.label, "stage": o.artifact.stage, "key": o.artifact.key} for o in outcomes]
        write_json(file, record | {"state": "done", "steps": steps, "code": 0})


def fates(folder: Path) -> dict[int, Fate]:
    """How far each member of a sweep has come that has begun, by its number."""
    found = {}
    for path in sorted((folder / _FOLDER).glob("*.json"), key=lambda path: int(path.stem)):
        state, row = _state(path)
        code = KILLED if state == "killed" else row.get("code", 0)
        pid = row.get("pid") if row.get("host") == socket.gethostname() else None
        found[int(path.stem)] = Fate(state, code, row.get("error", ""), pid, row.get("log"))
    return found


def _pair(override: str) -> tuple[str, str]:
    """The knob and its value, without what Hydra's grammar puts before a colon or a brace."""
    name, _, value = override.lstrip("+").partition("=")
    return name, re.sub(r"\\([:{}])", r"\1", value)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _state(path: Path) -> tuple[str, dict[str, Any]]:
    """The state of a member, and what its file says, read after the lock was tried: it may have ended or begun anew."""
    row = _read(path)
    if row["state"] != "running":
        return row["state"], row
    held = False
    try:
        with path.with_suffix(".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = True
    except FileNotFoundError:
        pass
    row = _read(path)
    return "killed" if row["state"] == "running" and not held else row["state"], row


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
    states = [_state(path) for path in files]
    rows = [row for _, row in states]
    overrides = [dict(_pair(word) for word in row["overrides"] if "=" in word) for row in rows]
    names = list(dict.fromkeys(name for given in overrides for name in given))
    varied = [name for name in names if len(rows) == 1 or len({given.get(name) for given in overrides}) > 1]
    records = []
    for path, (state, row), given in zip(files, states, overrides, strict=True):
        made = {step["name"]: store.get(step["stage"], step["key"]) for step in row["steps"]}
        records.append(
            Record(
                number=int(path.stem),
                knobs={name: given.get(name, "") for name in varied},
                state=state,
                error=row.get("error", ""),
                made={name: artifact for name, artifact in made.items() if artifact is not None},
                tries=row.get("tries", 1),
            )
        )
    return records
