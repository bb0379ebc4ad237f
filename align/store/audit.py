"""Check a whole store: artifacts, versions, aliases, and whether they match each other."""

from __future__ import annotations

from typing import Any, NamedTuple

from align.errors import StoreError
from align.store.artifacts import Artifact, ArtifactStore, require_fit


class Audit(NamedTuple):
    """The result of a check of a whole store.

    Attributes:
        artifacts, versions, aliases: how many were checked.
        unsealed: how many artifacts are from earlier code, whose manifests have no seal. Only their
            files were checked.
        faults: a line for each fault.
    """

    artifacts: int
    versions: int
    aliases: int
    unsealed: int
    faults: list[str]


def audit(store: ArtifactStore) -> Audit:
    """Read every file of a store and compare it with its manifest. All faults are reported."""
    faults: list[str] = []
    whole: dict[tuple[str, str], Artifact] = {}
    for artifact in store.objects():
        if isinstance(artifact, StoreError):
            faults.append(str(artifact))
            continue
        whole[artifact.stage, artifact.key] = artifact
        try:
            store.verify_files(artifact)
            store.base_of(artifact)
        except StoreError as error:
            faults.append(str(error))
    for artifact in whole.values():
        faults += _faults_of_inputs(artifact, whole)
    numbers: dict[str, set[int]] = {}
    for name, number, record in store.each_version():
        numbers.setdefault(name, set()).add(number)
        faults += _faults_of_version(store, f"{name}:v{number}", record, whole)
    aliases = [(name, *each) for name in numbers for each in store.each_alias(name)]
    for name, alias, version in aliases:
        faults += _faults_of_alias(f"{name}:{alias}", version, numbers[name])
    unsealed = sum(not artifact.seal for artifact in whole.values())
    return Audit(len(whole), sum(map(len, numbers.values())), len(aliases), unsealed, faults)


def _faults_of_version(
    store: ArtifactStore,
    ref: str,
    record: dict[str, Any] | StoreError,
    whole: dict[tuple[str, str], Artifact],
) -> list[str]:
    if isinstance(record, StoreError):
        return [str(record)]
    found = whole.get((record["stage"], record["key"]))
    if found is None:
        # A damaged artifact is reported as a fault already.
        is_damaged = store.object_path(record["stage"], record["key"]).exists()
        return (
            []
            if is_damaged
            else [f"{ref}: its files are gone from {store.root}; run the step that makes it"]
        )
    try:
        require_fit(found, record, ref)
    except StoreError as error:
        return [str(error)]
    return []


def _faults_of_alias(ref: str, version: int | StoreError, numbers: set[int]) -> list[str]:
    if isinstance(version, StoreError):
        return [str(version)]
    return (
        []
        if version in numbers
        else [f"{ref}: its version v{version} is gone; tag another, or run the step again"]
    )


def _faults_of_inputs(artifact: Artifact, whole: dict[tuple[str, str], Artifact]) -> list[str]:
    """Return a line for each input that was changed after the artifact was made from it.

    An input that was made again later is no fault: its manifest is newer than the artifact's.
    """
    faults = []
    for slot, entries in artifact.manifest["inputs"].items():
        for entry in entries:
            parent = whole.get((entry["stage"], entry["key"]))
            if parent is None or parent.seal == entry.get("seal", parent.seal):
                continue
            if parent.manifest.get("created", 0.0) <= artifact.manifest.get("created", 0.0):
                faults.append(
                    f"{artifact.ref}: its input {slot}, {parent.ref}, was changed after it was read"
                )
    return faults
