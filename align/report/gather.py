"""What a report is about: artifacts of the store in the order in which they were made, with their logs and samples."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from align.configs.differences import differences
from align.errors import StoreError
from align.report.rows import Row, is_key, read_rows
from align.store.artifacts import Artifact, ArtifactStore
from align.store.references import is_outside, is_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One artifact, and what is kept beside it.

    Attributes:
        name: the step, without its pipeline where all of a report are of one, and with its version where the report has
            several; version: "v3", or a piece of its key.
        inputs: (slot, key) of what it was made from.
        changes: (knob, before, now), against the version before.
        left_out: a line on each file of which not all can be read.
    """

    name: str
    version: str
    artifact: Artifact
    inputs: list[tuple[str, str]]
    log: list[Row]
    events: list[Row]
    samples: list[Row]
    calibration: list[Row]
    changes: list[tuple[str, str, str]]
    left_out: list[str]

    @property
    def key(self) -> str:
        return self.artifact.key

    @property
    def label(self) -> str:
        """The name with its version."""
        return self.name if ":" in self.name else f"{self.name}:{self.version}"

    @property
    def stage(self) -> str:
        return self.artifact.stage


def gather(store: ArtifactStore, refs: Sequence[str], left_out: list[str] | None = None) -> list[Made]:
    """Everything that `refs` were made from, and themselves.

    A pipeline's name stands for its latest evaluations and what they were made from, and for the latest of the steps
    that have no part in them: after a sweep whose members ran side by side, the latest of each step may be of different
    members.

    Args:
        left_out: where a line goes for each step of a pipeline that is damaged, or was made from what is; the report
            is then on the others. None: it is an error.

    Raises:
        StoreError: there is no such artifact, or it is damaged and was asked for by its own name.
    """
    order: dict[str, Artifact] = {}
    given: defaultdict[str, set[str]] = defaultdict(set)
    for ref in refs:
        for artifact in _named(store, ref, order, left_out):
            given[artifact.key].add(ref.partition(":")[0])
            try:
                lineage = store.lineage(artifact)
                for each in lineage:
                    _check(each)
            except StoreError as error:
                if left_out is None or _is_one(ref):
                    raise
                left_out.append(f"{artifact.ref}: {error}")
                continue
            for each in reversed(lineage):
                order.setdefault(each.key, each)
    pipelines = {ref.partition("/")[0] for ref in refs if "@" not in ref}
    only = pipelines.pop() if len(pipelines) == 1 else None
    for entry in _entries(order.values()):
        given[entry["key"]].add(entry["ref"].partition(":")[0])
    made = [_made(store, artifact, only, given[artifact.key]) for artifact in _parents_first(order)]
    count = Counter(each.name for each in made)
    return [replace(each, name=f"{each.name}:{each.version}") if count[each.name] > 1 else each for each in made]


def _check(artifact: Artifact) -> None:
    """Refuse what `align` does not make: a folder whose name is no key, an evaluation of no model."""
    if not is_key(artifact.key):
        raise StoreError(f"{artifact.path}: no artifact of align: expected a name of 64 hexadecimal digits; remove it")
    if artifact.kind == "evaluation" and not artifact.manifest["inputs"].get("model"):
        raise StoreError(
            f"{artifact.path}: manifest.json: inputs is not what align writes; remove that folder and run the step "
            "that makes it again"
        )


def _is_one(ref: str) -> bool:
    """Whether a reference is of one artifact, not of a pipeline."""
    return "/" in ref or "@" in ref or is_outside(ref) or is_path(ref)


def _named(
    store: ArtifactStore, ref: str, order: Mapping[str, Artifact], left_out: list[str] | None
) -> Iterator[Artifact]:
    """What `ref` stands for; `order` is what is there by the time the next is asked for."""
    if _is_one(ref):
        yield store.find(ref)
        return
    names = [name for name in store.names() if name.startswith(f"{ref}/")]
    if not names:
        known = ", ".join(sorted({name.partition("/")[0] for name in store.names()})) or "none yet"
        raise StoreError(f"{ref}: no pipeline of that name in {store.root}; pipelines: {known}")
    latest = {}
    for name in names:
        try:
            latest[name] = store.find(name)
        except StoreError as error:
            if left_out is None:
                raise
            left_out.append(f"{name}: {error}")
    for name, artifact in sorted(latest.items(), key=lambda item: item[1].kind != "evaluation"):
        if artifact.kind == "evaluation" or not _keys(store, name) & order.keys():
            yield artifact


def _keys(store: ArtifactStore, name: str) -> set[str]:
    """The keys of a name's versions, without those that are damaged."""
    found = set()
    for number in store.numbers()[name]:
        with contextlib.suppress(StoreError):
            found.add(store.version(name, number)["key"])
    return found


def _parents_first(artifacts: dict[str, Artifact]) -> list[Artifact]:
    placed: dict[str, Artifact] = {}

    def place(artifact: Artifact) -> None:
        if artifact.key in placed:
            return
        for entry in _entries([artifact]):
            place(artifacts[entry["key"]])
        placed[artifact.key] = artifact

    for artifact in sorted(artifacts.values(), key=lambda a: a.manifest["created"]):
        place(artifact)
    return list(placed.values())


def _entries(artifacts: Iterable[Artifact]) -> Iterator[dict[str, str]]:
    """What the manifests of artifacts say of each of their inputs."""
    for artifact in artifacts:
        for entries in artifact.manifest["inputs"].values():
            yield from entries


def _made(store: ArtifactStore, artifact: Artifact, only: str | None, given: Container[str]) -> Made:
    name, _, version = store.name_of(artifact, given, only).partition(":")
    inputs = [(slot, e["key"]) for slot, entries in artifact.manifest["inputs"].items() for e in entries]
    logs = {name: read_rows(artifact.path, name) for name in ("metrics", "events", "samples", "calibration")}
    return Made(
        name=name.removeprefix(f"{only}/") if only else name,
        version=version or artifact.key[:8],
        artifact=artifact,
        inputs=inputs,
        log=logs["metrics"][0],
        events=logs["events"][0],
        samples=logs["samples"][0],
        calibration=logs["calibration"][0],
        changes=_changes(store, name, version, artifact),
        left_out=[line for _, said in logs.values() for line in said],
    )


def _changes(store: ArtifactStore, name: str, version: str, artifact: Artifact) -> list[tuple[str, str, str]]:
    number = int(version[1:]) if version else 0
    try:
        before = store.find(f"{name}:v{number - 1}") if number else None
    except StoreError:  # it is gone or damaged, and this report is not on it
        before = None
    if before is None:
        return []
    changed = differences(before.manifest["config"], artifact.manifest["config"])
    return [(knob, str(old), str(new)) for knob, old, new in changed]
