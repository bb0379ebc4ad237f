"""Gather what a report is about: artifacts in the order they were made, with logs and samples."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from align.configs.differences import differences
from align.errors import StoreError
from align.report.rows import Row, is_key, read_rows
from align.report.running import Unfinished, unfinished
from align.store.artifacts import Artifact, ArtifactStore
from align.store.references import is_outside, is_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One artifact, and the files beside it.

    Attributes:
        name: the name of the step: without its pipeline if the whole report is about one pipeline,
            and with its version if the report has several versions of it.
        version: "v3", or a piece of its key.
        inputs: (slot, key) of each artifact that it was made from.
        changes: (knob, before, now): differences from the previous version.
        left_out: a line on each file that cannot be read completely.
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

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.artifact.metrics


def gather(
    store: ArtifactStore, refs: Sequence[str], left_out: list[str] | None = None
) -> list[Made]:
    """Return the artifacts that `refs` name and everything that they were made from, inputs first.

    The name of a pipeline means its latest evaluations with their lineage. It also means the latest
    artifact of each step that has no version in there. The latest artifacts of all steps would not
    do: after a sweep with parallel members they may be of different members.

    Args:
        left_out: a list to which a line is added for each step of a pipeline that is damaged, or
            was made from something damaged. The report is then about the others. None: raise
            instead.

    Raises:
        StoreError: an artifact does not exist, or one that was named itself is damaged.
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
    return [
        replace(each, name=f"{each.name}:{each.version}") if count[each.name] > 1 else each
        for each in made
    ]


def gather_with_unfinished(
    store: ArtifactStore, refs: Sequence[str], left_out: list[str]
) -> tuple[list[Made], list[Unfinished]]:
    """Return what `gather` finds, and the steps that `refs` mean and that are not finished.

    A reference that has unfinished steps and no artifact yet is no error: its first step may still
    be running.

    Raises:
        StoreError: a reference matches neither an artifact nor a step that has begun.
    """
    steps = unfinished(store, refs)
    made = _gathered(store, refs, left_out)
    # Without steps that ended meanwhile.
    return made, [s for s in steps if not store.object_path(s.stage, s.key).is_dir()]


def _gathered(store: ArtifactStore, refs: Sequence[str], left_out: list[str]) -> list[Made]:
    with contextlib.suppress(StoreError):
        return gather(store, refs, left_out)
    kept = []
    for ref in refs:
        try:
            gather(store, [ref], [])
            kept.append(ref)
        except StoreError:
            if not unfinished(store, [ref]):
                raise
    return gather(store, kept, left_out) if kept else []


def _check(artifact: Artifact) -> None:
    """Raise `StoreError` for an artifact that align does not make.

    Its folder's name is no key, or it is an evaluation without a model.
    """
    if not is_key(artifact.key):
        raise StoreError(
            f"{artifact.path}: no artifact of align: expected a name of 64 hexadecimal digits;"
            " remove it"
        )
    if artifact.kind == "evaluation" and not artifact.manifest["inputs"].get("model"):
        raise StoreError(
            f"{artifact.path}: manifest.json: inputs is not what align writes; remove that folder"
            " and run the step that makes it again"
        )


def _is_one(ref: str) -> bool:
    """Return True if a reference means one artifact, and not a pipeline."""
    return "/" in ref or "@" in ref or is_outside(ref) or is_path(ref)


def _named(
    store: ArtifactStore, ref: str, order: Mapping[str, Artifact], left_out: list[str] | None
) -> Iterator[Artifact]:
    """Yield the artifacts that `ref` means.

    Args:
        order: the artifacts found so far, with their lineage. The caller adds to it between two
            yields.
    """
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
    """Return the keys of a name's versions, without damaged versions."""
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
    """Yield each entry of the inputs in the manifests of artifacts."""
    for artifact in artifacts:
        for entries in artifact.manifest["inputs"].values():
            yield from entries


def _made(
    store: ArtifactStore, artifact: Artifact, only: str | None, given: Container[str]
) -> Made:
    name, _, version = store.name_of(artifact, given, only).partition(":")
    inputs = [
        (slot, e["key"]) for slot, entries in artifact.manifest["inputs"].items() for e in entries
    ]
    logs = {
        name: read_rows(artifact.path, name)
        for name in ("metrics", "events", "samples", "calibration")
    }
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


def _changes(
    store: ArtifactStore, name: str, version: str, artifact: Artifact
) -> list[tuple[str, str, str]]:
    number = int(version[1:]) if version else 0
    try:
        before = store.find(f"{name}:v{number - 1}") if number else None
    except StoreError:  # gone or damaged, but this report is not about it
        before = None
    if before is None:
        return []
    changed = differences(before.manifest["config"], artifact.manifest["config"])
    return [(knob, str(old), str(new)) for knob, old, new in changed]
