"""Read unfinished steps from their work folders, while they run and after a crash."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from align.errors import HealthStop
from align.report.rows import Row, is_key, read_rows
from align.store.artifacts import NOTE, STEPS, ArtifactStore, is_locked, is_number, read_json

_NAME = re.compile(r"[a-z0-9._-]+/[a-z0-9._-]+")


class Logged(Protocol):
    """The logs that a step leaves, finished or not."""

    @property
    def name(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def log(self) -> list[Row]: ...
    @property
    def events(self) -> list[Row]: ...
    @property
    def samples(self) -> list[Row]: ...
    @property
    def left_out(self) -> list[str]: ...
    @property
    def key(self) -> str: ...
    @property
    def inputs(self) -> list[tuple[str, str]]: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """One step that has begun and has not made its artifact yet.

    Attributes:
        name: the name that its artifact will have, PIPELINE/STEP.
        is_running: True if a process holds its lock.
        error: what stopped it, in words; "" if it runs, or if it was killed before it could report.
        went_bad: True if the error is about numbers that went bad.
        begun, written: seconds since the epoch: when it last began, and when it last wrote to its
            log.
        total, unit: the number of its steps, and their unit; None and "" if it does not report
            them.
        inputs: ("", key) of each artifact that it reads; the slots are not known.
        left_out: a line on each file that cannot be read completely.
    """

    name: str
    stage: str
    key: str
    inputs: list[tuple[str, str]]
    is_running: bool
    error: str
    went_bad: bool
    begun: float
    written: float
    total: int | None
    unit: str
    log: list[Row]
    events: list[Row]
    samples: list[Row]
    left_out: list[str]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the result: none yet."""
        return {}

    @property
    def step(self) -> int:
        """The last step that was logged; 0 if none was."""
        return int(self.log[-1]["step"]) if self.log else 0

    @property
    def state(self) -> str:
        """The progress of the step in one line, and why it stopped."""
        unit = self.unit.removesuffix("s") or "step"
        if self.total is not None:
            far = f"{unit} {self.step:,} of {self.total:,}"
        else:
            far = f"{unit} {self.step:,}" if self.log else "no log lines yet"
        when = time.strftime("%H:%M:%S", time.localtime(self.written))
        if self.is_running:
            return f"running, last written {when}, {far}"
        day = time.strftime("%Y-%m-%d", time.localtime(self.written))
        if self.error:
            return f"stopped before its end, last written {day} {when}, {far}: {self.error}"
        return (
            f"did not end: it was killed or its machine went down, last written {day} {when}, {far}"
        )


def unfinished(store: ArtifactStore, refs: Sequence[str]) -> list[Unfinished]:
    """Return the unfinished steps that `refs` mean, sorted by start time.

    A reference is PIPELINE, PIPELINE/STEP or STAGE@KEY.

    A step that stopped is left out if its name has a newer artifact: the command was given again
    with other knobs.
    """
    found = []
    for note in [folder / NOTE for folder in store.work_folders()]:
        step = None if _fault(note) else _read(note.parent)
        if step is None or not any(_is_meant(step, ref) for ref in refs):
            continue
        if not step.is_running:
            versions = store.versions(step.name).values()
            if any(record["created"] > step.written for record in versions):
                continue
        found.append(step)
    return sorted(found, key=lambda step: step.begun)


def strangers(store: ArtifactStore) -> list[str]:
    """Return a line on each work folder that `unfinished` skips: align did not write it."""
    notes = [(folder / NOTE, _fault(folder / NOTE)) for folder in store.work_folders()]
    return [f"{note.parent.relative_to(store.root)}: {fault}" for note, fault in notes if fault]


def _fault(note: Path) -> str:
    """Return why a work folder is not one of align's; "" if it is one, or has been removed."""
    if not is_key(note.parent.name):
        return "its name is not 64 hexadecimal digits"
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:  # its step ended meanwhile
        return ""
    except (ValueError, RecursionError):
        said = None
    if (
        isinstance(said, dict)
        and is_number(said.get("begun"))
        and _NAME.fullmatch(str(said.get("name")))
    ):
        return ""
    return f"its {NOTE} cannot be read"


def _is_meant(step: Unfinished, ref: str) -> bool:
    if "@" in ref:
        stage, _, key = ref.partition("@")
        return step.stage == stage and step.key.startswith(key)
    return step.name == ref or step.name.startswith(f"{ref}/")


def _read(folder: Path) -> Unfinished | None:
    """Read a work folder; return None if its step ended meanwhile."""
    # Checked before its files are read: a step that ends meanwhile is not reported as a crash.
    is_running = is_locked(folder)
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        out, steps = folder / "out", folder / STEPS
        planned = read_json(steps)
        planned = planned if isinstance(planned, dict) else {}
        total = planned.get("total")
        log = out / "metrics.jsonl"
        written = max(
            (path.stat().st_mtime for path in (log, folder / NOTE) if path.is_file()), default=0.0
        )
        logs = {
            name: read_rows(out, name, is_written=True) for name in ("metrics", "events", "samples")
        }
    except FileNotFoundError:
        return None
    return Unfinished(
        name=note["name"],
        stage=folder.parent.name,
        key=folder.name,
        inputs=[("", key) for _, key in note.get("inputs", ())],
        is_running=is_running,
        error="" if is_running else note.get("error", ""),
        went_bad=not is_running and note.get("exit_code") == HealthStop.exit_code,
        begun=note["begun"],
        written=written,
        total=total if isinstance(total, int) else None,
        unit=str(planned.get("unit", "")),
        log=logs["metrics"][0],
        events=logs["events"][0],
        samples=logs["samples"][0],
        left_out=[line for _, said in logs.values() for line in said],
    )
