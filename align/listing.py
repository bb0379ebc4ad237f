"""Every version in a store and what it leads to, as `align artifacts ls` shows it.

What a version and the manifest of its artifact say is remembered in cache/listing.json, beside the inodes, sizes and
times of both files. So a look at a store of thousands reads and checks only those that are new or changed. The other
files of an artifact are looked at each time, and not read: `align artifacts verify` reads everything. A store that may
not be written to is read anew each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from align.artifacts import MANIFEST, ArtifactStore, read_bytes, replacing, size_of_file
from align.errors import StoreError

# Nanoseconds. A file that was changed less than that ago may change again and keep its time: a disk's clock is coarse.
_SETTLED = 2 * 10**9

Row = dict[str, Any]
Stamp = list[int]


def list_versions(store: ArtifactStore) -> tuple[list[Row], list[str]]:
    """A row for each version, in the order of names and numbers, and a line for each file that is damaged."""
    listing = _Listing(store)
    rows: list[Row] = []
    faults: list[str] = []
    for name, numbers in store.numbers().items():
        aliases: dict[int, list[str]] = {}
        for alias, version in store.each_alias(name):
            if isinstance(version, StoreError):
                faults.append(str(version))
            else:
                aliases.setdefault(version, []).append(alias)
        for number in numbers:
            try:
                found = listing.row(name, number)
            except StoreError as error:
                faults.append(str(error))
            else:
                rows.append({"name": name, "version": f"v{number}", "aliases": aliases.get(number, []), **found})
    listing.keep()
    return rows, faults


class _Listing:
    """What is known of versions: {NAME:vN: {version, manifest: their stamps, files: {name: size}, stage, key, row}}."""

    def __init__(self, store: ArtifactStore):
        self._store, self._file = store, store.root / "cache" / "listing.json"
        self._code = _code()
        self._before = self._read()
        self._now: dict[str, dict[str, Any]] = {}

    def row(self, name: str, number: int) -> Row:
        """What a version leads to.

        Raises:
            StoreError: the version or the artifact is damaged.
        """
        ref = f"{name}:v{number}"
        version = _stamp(f"{self._store.root}/names/{name}/v{number}.json")
        known = self._before.get(ref)
        if known is None or version != known["version"] or not self._is_whole(known):
            return self._read_anew(name, number, version)
        self._now[ref] = known
        return known["row"]

    def keep(self) -> None:
        """Write down what is known for the next look; without it that takes longer, and nothing else."""
        if self._now == self._before:
            return
        content = json.dumps(self._now).encode()
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(exist_ok=True)
            with replacing(self._file) as temporary:
                temporary.write_bytes(self._check(content) + b"\n" + content)

    def _read(self) -> dict[str, dict[str, Any]]:
        """What the look before knew; nothing where the file is damaged or of other code."""
        try:
            check, _, content = read_bytes(self._file).partition(b"\n")
        except StoreError:
            return {}
        return json.loads(content) if check == self._check(content) else {}

    def _check(self, content: bytes) -> bytes:
        return hashlib.sha256(self._code + content).hexdigest().encode()

    def _is_whole(self, known: dict[str, Any]) -> bool:
        """Whether an artifact's manifest is as it was, and its files have their sizes."""
        folder = f"{self._store.root}/objects/{known['stage']}/{known['key']}/"
        return _stamp(folder + MANIFEST) == known["manifest"] and all(
            size_of_file(folder + file) == size for file, size in known["files"].items()
        )

    def _read_anew(self, name: str, number: int, version: Stamp | None) -> Row:
        record = self._store.version(name, number)
        stage, key = record["stage"], record["key"]
        manifest = _stamp(f"{self._store.object_path(stage, key)}/{MANIFEST}")
        row = {"kind": "gone", "artifact": f"{stage}@{key[:12]}", "created": record["created"], "bytes": 0}
        row["figures"] = ""
        artifact = self._store.get(stage, key)
        if artifact is None:
            return row
        from align.report.summary import main_figures

        files = {file: of["size"] for file, of in artifact.manifest["files"].items()}
        row |= {"kind": artifact.kind, "bytes": sum(files.values()), "figures": main_figures(artifact)}
        if version is not None and manifest is not None and _is_settled(version) and _is_settled(manifest):
            both = {"version": version, "manifest": manifest, "files": files}
            self._now[f"{name}:v{number}"] = {**both, "stage": stage, "key": key, "row": row}
        return row


def _stamp(path: str) -> Stamp | None:
    """What differs when a file was written to or replaced; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _is_settled(stamp: Stamp) -> bool:
    return time.time_ns() - max(stamp[2:]) > _SETTLED


def _code() -> bytes:
    """The code that makes a row: other code may show other figures."""
    here = Path(__file__).resolve().parent
    return b"".join(read_bytes(here / file) for file in ("listing.py", "report/summary.py", "report/tables.py"))
