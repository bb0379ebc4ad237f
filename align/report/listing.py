"""List every version in a store and its artifact, as `align artifacts ls` shows them.

The facts about a version and its artifact's manifest are cached in cache/listing.jsonl, with the
inode, size and times of both files. A step appends a line after it has made its artifact. A listing
rewrites the file if lines are missing or outdated. So in a store with thousands of versions only
changed files are read and checked. Of an artifact's other files only the size is checked; `align
artifacts verify` reads everything.

A store that was copied, or was listed by other code, is read again once. A store that cannot be
written to is read again each time.
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

from align.configs import STAGES
from align.errors import StoreError
from align.store.artifacts import MANIFEST, ArtifactStore, read_bytes, replacing, size_of_file

# Nanoseconds. A file with a more recent change may change again and keep its time, because the
# clock of a disk is coarse.
_SETTLED = 2 * 10**9

_ROW = {"kind": str, "artifact": str, "created": float, "bytes": int, "figures": str}

Row = dict[str, Any]
Stamp = list[int]


def list_versions(store: ArtifactStore) -> tuple[list[Row], list[str]]:
    """Return a row for each version, by name and number, and a line for each damaged file."""
    return _Listing(store).rows()


def remember(store: ArtifactStore, name: str, number: int) -> None:
    """Add a line on a version and an artifact that this process has just written.

    So the next listing need not read them. A failure is ignored: it only makes the next listing
    slower, and it must not end a run that has made its artifact.
    """
    with contextlib.suppress(Exception):
        _Listing(store).add(name, number)


class _Listing:
    """A cache of facts about versions and their artifacts.

    It maps NAME:vN to {version, manifest: their stamps, files: {name: size}, stage, key, row}.

    A line of the file is a digest, a space, and the JSON of [NAME:vN, facts]. If several lines are
    about one version, the last one counts. A line of other code, or an incomplete line, is ignored.
    """

    def __init__(self, store: ArtifactStore):
        self._store, self._file = store, store.root / "cache" / "listing.jsonl"
        self._now: dict[str, dict[str, Any]] = {}

    def rows(self) -> tuple[list[Row], list[str]]:
        """Return the rows and faults of `list_versions`."""
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
                    rows.append(
                        {
                            "name": name,
                            "version": f"v{number}",
                            "aliases": aliases.get(number, []),
                            **found,
                        }
                    )
        if not is_tidy or self._now != before:
            self._write()
        return rows, faults

    def add(self, name: str, number: int) -> None:
        """Append a line on a version.

        Its files are new, but they count as settled: the process that just wrote them knows that
        nobody has changed them since.
        """
        if _code() != _CODE:  # align's code was changed while this process ran
            return
        self._read_anew(name, number, is_settled=lambda stamp: True)
        self._file.parent.mkdir(exist_ok=True)
        # If the file is a pipe, do not wait; if it is a link, do not follow it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(self._file, flags, 0o666), "ab", buffering=0) as file:
            file.write(self._lines())

    def _row(self, name: str, number: int, known: dict[str, Any] | None) -> Row:
        """Return the row of a version, from the cache if it is up to date.

        Raises:
            StoreError: the version or the artifact is damaged.
        """
        if (
            known is None
            or _stamp(self._version_file(name, number)) != known["version"]
            or not self._is_whole(known)
        ):
            return self._read_anew(name, number, _is_settled)
        self._now[f"{name}:v{number}"] = known
        return known["row"]

    def _read(self) -> tuple[dict[str, dict[str, Any]], bool]:
        """Return the cached facts, and True if every line of the file is valid and counts."""
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
        """Write the facts for the next listing.

        A failure is ignored: it only makes that listing slower.
        """
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
        """Return True if an artifact's manifest is unchanged and its files have their sizes."""
        folder = f"{self._store.root}/objects/{known['stage']}/{known['key']}/"
        return _stamp(folder + MANIFEST) == known["manifest"] and all(
            size_of_file(folder + file) == size for file, size in known["files"].items()
        )

    def _read_anew(self, name: str, number: int, is_settled: Callable[[Stamp], bool]) -> Row:
        version = _stamp(self._version_file(name, number))
        record = self._store.version(name, number)
        stage, key = record["stage"], record["key"]
        manifest = _stamp(f"{self._store.object_path(stage, key)}/{MANIFEST}")
        row = {
            "kind": "gone",
            "artifact": f"{stage}@{key[:12]}",
            "created": float(record["created"]),
            "bytes": 0,
        }
        row["figures"] = ""
        artifact = self._store.get(stage, key)
        if artifact is None:
            return row
        from align.report.summary import main_figures

        files = {file: of["size"] for file, of in artifact.manifest["files"].items()}
        row |= {
            "kind": artifact.kind,
            "bytes": sum(files.values()),
            "figures": main_figures(artifact),
        }
        if (
            version is not None
            and manifest is not None
            and is_settled(version)
            and is_settled(manifest)
        ):
            both = {"version": version, "manifest": manifest, "files": files}
            self._now[f"{name}:v{number}"] = {**both, "stage": stage, "key": key, "row": row}
        return row


def _stamp(path: str) -> Stamp | None:
    """Return what changes when a file is written to or replaced; None if there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _is_settled(stamp: Stamp) -> bool:
    return time.time_ns() - max(stamp[2:]) > _SETTLED


def _is_known(known: Any) -> bool:
    """Return True if a line has the form that `_Listing` writes."""
    row = known["row"]
    return (
        all(type(known[field]) is str for field in ("stage", "key"))
        and all(type(size) is int for size in known["files"].values())
        and {"version", "manifest"} <= known.keys()
        and {field: type(value) for field, value in row.items()} == _ROW
    )


def _code() -> bytes:
    """Return a digest of what makes a row, because other code may show other figures."""
    here, digest = Path(__file__).resolve().parent, hashlib.sha256()
    for file in ("listing.py", "summary.py", "tables.py"):
        digest.update(read_bytes(here / file))
    digest.update(repr({stage: cls.HEADLINE for stage, cls in STAGES.items()}).encode())
    return digest.digest()


_CODE = _code()  # when this process imported it


def _check(content: bytes) -> bytes:
    return hashlib.sha256(_CODE + content).hexdigest().encode()
