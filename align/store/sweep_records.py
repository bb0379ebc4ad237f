"""Records of a sweep's members: a file for each with its overrides, its outcome and its artifacts.

The state in `SWEEP/members/NUMBER.json` is "running" until the member ends. The member holds
NUMBER.lock during that time. If the state is "running" and nobody holds the lock, the member was
killed. So a killed process does not have to write anything.
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
KILLED = 137  # the exit code that a shell reports for a process that SIGKILL ended


class Member(NamedTuple):
    """The member of a sweep that this process runs.

    Attributes:
        folder: the sweep's folder.
        number: the member's number.
        overrides: its overrides.
        log: the folder with its output; None if it prints to the console.
    """

    folder: Path
    number: int
    overrides: list[str]
    log: str | None = None

    @property
    def knobs(self) -> list[str]:
        """The overrides that change results."""
        return [word for word in self.overrides if word.lstrip("+").startswith(("steps.", "seed="))]


class Record(NamedTuple):
    """A member of a sweep, read from its file.

    Attributes:
        number: the member's number.
        knobs: its overrides that differ between members.
        state: running, done, failed, stopped or killed.
        error: the error if it failed, else "".
        made: the artifacts of its steps by name, in order.
        tries: how often it was started.
    """

    number: int
    knobs: dict[str, str]
    state: str
    error: str
    made: dict[str, Artifact]
    tries: int = 1


class Fate(NamedTuple):
    """The state of a member, from its file and from whether its process is alive.

    Attributes:
        state: as in `Record`.
        code: the exit code; 0 while it runs.
        error: the error if it failed, else "".
        pid: the process id, if the process is on this machine.
        log: the folder with its output; None if it prints to the console.
    """

    state: str
    code: int
    error: str
    pid: int | None
    log: str | None


@contextlib.contextmanager
def recorded(member: Member | None) -> Iterator[list[Any]]:
    """Keep a record of a member while it runs.

    Yield a list, into which the caller puts the outcomes of the steps. If `member` is None, nothing
    is recorded.
    """
    outcomes: list[Any] = []
    if member is None:
        yield outcomes
        return
    file = member.folder / _FOLDER / f"{member.number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "overrides": member.overrides,
        "state": "running",
        "steps": [],
        "log": member.log,
    }
    record |= {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "tries": _read(file).get("tries", 0) + 1,
    }
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
        steps = [
            {"name": o.step.label, "stage": o.artifact.stage, "key": o.artifact.key}
            for o in outcomes
        ]
        write_json(file, record | {"state": "done", "steps": steps, "code": 0})


def fates(folder: Path) -> dict[int, Fate]:
    """Return the state of each member of a sweep that has started, by number."""
    found = {}
    for path in sorted((folder / _FOLDER).glob("*.json"), key=lambda path: int(path.stem)):
        state, row = _state(path)
        code = KILLED if state == "killed" else row.get("code", 0)
        pid = row.get("pid") if row.get("host") == socket.gethostname() else None
        found[int(path.stem)] = Fate(state, code, row.get("error", ""), pid, row.get("log"))
    return found


def _pair(override: str) -> tuple[str, str]:
    """Return a knob and its value, without Hydra's backslashes before a colon or a brace."""
    name, _, value = override.lstrip("+").partition("=")
    return name, re.sub(r"\\([:{}])", r"\1", value)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _state(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the state of a member and the content of its file.

    The file is read again after the lock was tried, because the member may have ended or started
    again in the meantime.
    """
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
    """Return the folders of all sweeps with records, the oldest first."""
    return sorted(folder.parent for folder in store.root.glob(f"sweeps/*/{_FOLDER}"))


def read_sweep(store: ArtifactStore, folder: Path) -> list[Record]:
    """Return the members of a sweep in order, each with the overrides in which members differ.

    Raises:
        StoreError: the folder has no records of a sweep.
    """
    files = sorted((folder / _FOLDER).glob("*.json"), key=lambda path: int(path.stem))
    if not files:
        raise StoreError(f"{folder}: no sweep's members are recorded here")
    states = [_state(path) for path in files]
    rows = [row for _, row in states]
    overrides = [dict(_pair(word) for word in row["overrides"] if "=" in word) for row in rows]
    names = list(dict.fromkeys(name for given in overrides for name in given))
    varied = [
        name
        for name in names
        if len(rows) == 1 or len({given.get(name) for given in overrides}) > 1
    ]
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
