"""What a store holds and nobody needs, and its removal.

Kept is what a name leads to, what that was made from, and what a step in progress reads. The rest goes when nothing
below it was written for a day.
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
_REMOVED = "removed"  # below the store: what is taken out of it at once, and then removed file by file


class Garbage(NamedTuple):
    """What can go.

    Attributes:
        paths: artifacts' folders, abandoned work, and temporary files that a killed process left.
        unreadable: what cannot be read: nobody knows what it needs, so no artifact is among the paths then.
    """

    paths: list[Path]
    unreadable: list[str]


def find_garbage(store: ArtifactStore) -> Garbage:
    """What nobody needs and nobody wrote to for a day."""
    keep, unreadable = _needed(store)
    work = [path for path in store.work_folders() if not is_locked(path)]
    loose = [path for path in sorted(store.root.glob("objects/*/*")) if path not in keep]
    temporary = [path for path in sorted(store.root.glob("names/**/.*")) if path.is_file()]
    found = [*([] if unreadable else loose), *work, *temporary]
    return Garbage([path for path in found if _is_old(path)], unreadable)


def remove_garbage(store: ArtifactStore) -> Iterator[Path]:
    """Remove what `find_garbage` finds, and yield each path when it is gone.

    Nobody begins to use an artifact until all has left its place, each at once, so that no half of one is ever there. A
    step that begins its work again keeps it. The files are removed after that: they may be many, and nobody has to wait
    for it.
    """
    removed = store.root / _REMOVED
    taken: list[tuple[Path, Path]] = []
    with store.alone():
        left = [*removed.glob("*")]  # by a removal that was cut off, or one that is not done yet
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
        with contextlib.suppress(FileNotFoundError):  # another removal took it for one that was cut off
            shutil.rmtree(place)
        yield path
    with contextlib.suppress(OSError):  # not empty: another removal
        removed.rmdir()


def _needed(store: ArtifactStore) -> tuple[set[Path], list[str]]:
    """The folders of all artifacts that are needed, and what cannot be read."""
    queue: list[tuple[str, str]] = []
    unreadable: list[str] = []
    for _, _, record in store.each_version():
        if isinstance(record, StoreError):
            unreadable.append(str(record))
        else:
            queue.append((record["stage"], record["key"]))
    for note in [folder / NOTE for folder in store.work_folders()]:
        try:
            queue += [(str(stage), str(key)) for stage, key in json.loads(note.read_text("utf-8")).get("inputs", [])]
        except FileNotFoundError:
            continue  # the step ended meanwhile
        except (OSError, ValueError, TypeError, AttributeError):
            unreadable.append(f"{note}: cannot be read; remove {note.parent} if no step works there")
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
                continue  # a lost ancestor must not cost those that are still there
            queue.append(base_name(artifact.path))
        except StoreError as error:
            unreadable.append(str(error))
            continue
        queue += [(entry["stage"], entry["key"]) for slot in artifact.manifest["inputs"].values() for entry in slot]
    return keep, unreadable


def _is_old(path: Path) -> bool:
    """Whether nothing at or below a path was written for a day; what goes while it is looked at is in use."""
    try:
        newest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except FileNotFoundError:
        return False
    return time.time() - newest > _GRACE_SECONDS
