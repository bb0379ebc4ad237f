"""Every version in a store and what it leads to, as `align artifacts ls` shows it.

What a version and the manifest of its artifact say is remembered in cache/listing.jsonl, beside the inodes, sizes and
times of both files. A step adds a line when it has made its artifact; a look writes the file again where lines are
missing or old. So a look at a store of thousands reads and checks only what changed. Of the other files of an artifact
it asks the size alone: `align artifacts verify` reads everything. A store that was copied, or was listed by other code,
is read anew once; one that may not be written to is read anew each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.errors import StoreError
from align.store.artifacts import MANIFEST, ArtifactStore, read_bytes, replacing, size_of_file

# Nanoseconds. A file that was changed less than that ago may change again and keep its time: a disk's clock is coarse.
_SETTLED = 2 * 10**9

_ROW = {"kind": str, "artifact": str, "created": float, "bytes": int, "figures": str}

Row = dict[str, Any]
Stamp = list[int]


def list_versions(store: ArtifactStore) -> tuple[list[Row], list[str]]:
    """A row for each version, in the order of names and numbers, and a line for each file that is damaged."""
    return _Listing(store).rows()


def remember(store: ArtifactStore, name: str, number: int) -> None:
    """Add a line on a version and an artifact that this process has just written, so that the next look reads neither.

    Where that fails, the next look takes longer. It must not end a run that has made its artifact.
    """
    with contextlib.suppress(Exception):
        _Listing(store).add(name, number)


class _Listing:
    """What is known of versions: {NAME:vN: {version, manifest: their stamps, files: {name: size}, stage, key, row}}.

    A line of the file is a digest, a space, and the JSON of (NAME:vN, what is known). Of several lines on one version
    the last counts. A line of other code, or one that was torn, counts for nothing.
    """

    def __init__(self, store: ArtifactStore):
        self._store, self._file = store, store.root / "cache" / "listing.jsonl"
        self._now: dict[str, dict[str, Any]] = {}

    def rows(self) -> tuple[list[Row], list[str]]:
        """As `list_versions`."""
        before, is_tidy = self._read()
        rows: list[Row] = []
        faults: list[str] = []
        for name, numbers in self._store.numbers().items():
            aliases: dict[int, list[str]] = {}
            for alias, version in self._store.each_alias(name):
                if isinstance(version, StoreError):
                    faults.append(str(version))
                else:
                    aliases.setdefault(version, []).append(alias)
            for number in numbers:
                try:
                    found = self._row(name, number, before.get(f"{name}:v{number}"))
                except StoreError as error:
                    faults.append(str(error))
                else:
                    rows.append({"name": name, "version": f"v{number}", "aliases": aliases.get(number, []), **found})
        if not is_tidy or self._now != before:
            self._write()
        return rows, faults

    def add(self, name: str, number: int) -> None:
        """Add a line on a version. Its files are new, but who just wrote them knows that nobody changed them since."""
        if _code() != _CODE:  # it was changed while this process ran
            return
        self._read_anew(name, number, is_settled=lambda stamp: True)
        self._file.parent.mkdir(exist_ok=True)
        # Neither wait for a pipe nor follow a link.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(self._file, flags, 0o666), "ab", buffering=0) as file:
            file.write(self._lines())

    def _row(self, name: str, number: int, known: dict[str, Any] | None) -> Row:
        """What a version leads to.

        Raises:
            StoreError: the version or the artifact is damaged.
        """
        if known is None or _stamp(self._version_file(name, number)) != known["version"] or not self._is_whole(known):
            return self._read_anew(name, number, _is_settled)
        self._now[f"{name}:v{number}"] = known
        return known["row"]

    def _read(self) -> tuple[dict[str, dict[str, Any]], bool]:
        """What is known from before, and whether the file holds nothing else."""
        try:
            lines = read_bytes(self._file).splitlines()
        except StoreError:
            return {}, True
        found = {}
        for line in lines:
            check, _, content = line.partition(b" ")
            if check != _check(content):
                continue
            with contextlib.suppress(
                ValueError, TypeError, KeyError, AttributeError
            ):  # somebody made a line of another form
                ref, known = json.loads(content)
                if _is_known(known):
                    found[ref] = known
        return found, len(found) == len(lines)

    def _write(self) -> None:
        """Write down what is known for the next look; without it that takes longer, and nothing else."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(exist_ok=True)
            with replacing(self._file) as temporary:
                temporary.write_bytes(self._lines())

    def _lines(self) -> bytes:
        contents = [json.dumps(each).encode() for each in self._now.items()]
        return b"".join(_check(content) + b" " + content + b"\n" for content in contents)

    def _version_file(self, name: str, number: int) -> str:
        return f"{self._store.root}/names/{name}/v{number}.json"

    def _is_whole(self, known: dict[str, Any]) -> bool:
        """Whether an artifact's manifest is as it was, and its files have their sizes."""
        folder = f"{self._store.root}/objects/{known['stage']}/{known['key']}/"
        return _stamp(folder + MANIFEST) == known["manifest"] and all(
            size_of_file(folder + file) == size for file, size in known["files"].items()
        )

    def _read_anew(self, name: str, number: int, is_settled: Callable[[Stamp], bool]) -> Row:
        version = _stamp(self._version_file(name, number))
        record = self._store.version(name, number)
        stage, key = record["stage"], record["key"]
        manifest = _stamp(f"{self._store.object_path(stage, key)}/{MANIFEST}")
        row = {"kind": "gone", "artifact": f"{stage}@{key[:12]}", "created": float(record["created"]), "bytes": 0}
        row["figures"] = ""
        artifact = self._store.get(stage, key)
        if artifact is None:
            return row
        from align.report.summary import main_figures

        files = {file: of["size"] for file, of in artifact.manifest["files"].items()}
        row |= {"kind": artifact.kind, "bytes": sum(files.values()), "figures": main_figures(artifact)}
        if version is not None and manifest is not None and is_settled(version) and is_settled(manifest):
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


def _is_known(known: Any) -> bool:
    """Whether a line has the form that `_Listing` writes."""
    row = known["row"]
    return (
        all(type(known[field]) is str for field in ("stage", "key"))
        and all(type(size) is int for size in known["files"].values())
        and {"version", "manifest"} <= known.keys()
        and {field: type(value) for field, value in row.items()} == _ROW
    )


def _code() -> bytes:
    """The digest of the code that makes a row: other code may show other figures."""
    here, digest = Path(__file__).resolve().parent, hashlib.sha256()
    for file in ("listing.py", "summary.py", "tables.py"):
        digest.update(read_bytes(here / file))
    return digest.digest()


_CODE = _code()  # as this process imported it


def _check(content: bytes) -> bytes:
    return hashlib.sha256(_CODE + content).hexdigest().encode()
