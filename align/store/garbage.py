"""Find and remove what is no longer needed in a store.

An artifact is kept if a name points at it, if a kept artifact was made from it, or if a step in
progress reads it. All else is removed if nothing below it was written for a day.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from align.errors import StoreError
from align.store.artifacts import NOTE, ArtifactStore, base_name, held_if_free, is_locked

_GRACE_SECONDS = 24 * 3600
# A folder in the store. Garbage is first moved there by one rename, then removed file by file.
_REMOVED = "removed"


class Garbage(NamedTuple):
    """The paths that can be removed.

    Attributes:
        paths: folders of artifacts, abandoned work folders, and temporary files of killed
            processes.
        unreadable: a line for each record that cannot be read. If there is any, `paths` has no
            artifact, because it is unknown which artifacts such a record needs.
    """

    paths: list[Path]
    unreadable: list[str]


def find_garbage(store: ArtifactStore) -> Garbage:
    """Return what is not needed and was not written to for a day."""
    keep, unreadable = _needed(store)
    work = [path for path in store.work_folders() if not is_locked(path)]
    loose = [path for path in sorted(store.root.glob("objects/*/*")) if path not in keep]
    temporary = [path for path in sorted(store.root.glob("names/**/.*")) if path.is_file()]
    found = [*([] if unreadable else loose), *work, *temporary]
    return Garbage([path for path in found if _is_old(path)], unreadable)


def remove_garbage(store: ArtifactStore) -> Iterator[Path]:
    """Remove what `find_garbage` finds, and yield each path when it is removed.

    First, all garbage is moved away under the store's exclusive lock. Each path is moved by one
    rename, so a partly removed artifact is never visible. A step that has started to work in a
    folder again keeps it. Then the files are removed without the lock, so that nobody waits for
    that.
    """
    removed = store.root / _REMOVED
    taken: list[tuple[Path, Path]] = []
    with store.alone():
        left = [*removed.glob("*")]  # from a removal that was killed, or that still runs
        for path in find_garbage(store).paths:
            if path.is_file():
                path.unlink()
                yield path
                continue
            with held_if_free(path) as is_free:
                if is_free and _is_old(path):
                    removed.mkdir(exist_ok=True)
                    place = removed / uuid.uuid4().hex
                    path.rename(place)
                    taken.append((path, place))
    for place in left:
        shutil.rmtree(place, ignore_errors=True)
    for path, place in taken:
        # Another removal may have taken it for garbage of a killed removal.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place)
        yield path
    with contextlib.suppress(OSError):  # not empty: another removal still runs
        removed.rmdir()


def _needed(store: ArtifactStore) -> tuple[set[Path], list[str]]:
    """Return the folders of all needed artifacts, and a line for each unreadable record."""
    queue: list[tuple[str, str]] = []
    unreadable: list[str] = []
    for _, _, record in store.each_version():
        if isinstance(record, StoreError):
            unreadable.append(str(record))
        else:
            queue.append((record["stage"], record["key"]))
    for note in [folder / NOTE for folder in store.work_folders()]:
        try:
            queue += [
                (str(stage), str(key))
                for stage, key in json.loads(note.read_text("utf-8")).get("inputs", [])
            ]
        except FileNotFoundError:
            continue  # the step ended in the meantime
        except (OSError, ValueError, TypeError, AttributeError):
            unreadable.append(
                f"{note}: cannot be read; remove {note.parent} if no step works there"
            )
    keep: set[Path] = set()
    while queue:
        stage, key = queue.pop()
        path = store.object_path(stage, key)
        if path in keep:
            continue
        keep.add(path)
        try:
            artifact = store.get(stage, key)
            if artifact is None:
                continue  # a missing ancestor; the others must still be kept
            queue.append(base_name(artifact.path))
        except StoreError as error:
            unreadable.append(str(error))
            continue
        queue += [
            (entry["stage"], entry["key"])
            for slot in artifact.manifest["inputs"].values()
            for entry in slot
        ]
    return keep, unreadable


def _is_old(path: Path) -> bool:
    """Return whether nothing at or below a path was written for a day.

    A path that disappears during the check is in use, so it is not old.
    """
    try:
        newest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except FileNotFoundError:
        return False
    return time.time() - newest > _GRACE_SECONDS
