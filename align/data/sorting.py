"""Sort rows into a random-looking order that depends only on their content, without duplicates.

The rows need not fit into memory.
"""

from __future__ import annotations

import heapq
import io
import os
import pickle
import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import IO

from align.data.records import Row, digest

_HEAD = struct.Struct("32sQ")  # before each row in the file: its sha256, and its size in bytes
# Memory per row besides its pickle: the sha256, two objects, a dict entry.
_ENTRY_BYTES = 200
_BLOCK = 2**16


class RowSorter:
    """Rows of several parts (splits), each part sorted by the sha256 of each row's `repr`.

    Identical rows of a part are kept once. Rows are held in memory up to `budget`. Above that, they
    are sorted and written to a file as one run, as often as needed. Reading merges the runs: merge
    sort, Knuth, The Art of Computer Programming 3, section 5.4. While merging, memory is 64 KiB per
    run; a run is `budget` bytes of rows.

    Args:
        file: an empty file that nobody else can write, because its content is unpickled; it must
            have room for all rows on its disk.
        budget: bytes of rows to hold in memory.
    """

    def __init__(self, file: IO[bytes], budget: int):
        self._file, self._budget = file, budget
        self._held: defaultdict[str, dict[bytes, bytes]] = defaultdict(dict)
        self._held_bytes = 0
        self._runs: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    def add(self, part: str, row: Row) -> None:
        key, held = digest(repr(row)), self._held[part]
        if key in held:
            return
        held[key] = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
        self._held_bytes += len(held[key]) + _ENTRY_BYTES
        if self._held_bytes > self._budget:
            self._spill()

    def keys(self, part: str) -> Iterator[bytes]:
        """Yield the sha256s of a part's rows in order."""
        return (key for key, _ in self._merged(part))

    def rows(self, part: str) -> Iterator[Row]:
        """Yield a part's rows in order; callers may read them several times."""
        return (pickle.loads(pickled) for _, pickled in self._merged(part))

    def _spill(self) -> None:
        for part, held in self._held.items():
            begin = self._file.tell()
            for key in sorted(held):
                self._file.write(_HEAD.pack(key, len(held[key])) + held[key])
            self._runs[part].append((begin, self._file.tell()))
        self._file.flush()  # the file is read by its descriptor
        self._held.clear()
        self._held_bytes = 0

    def _merged(self, part: str) -> Iterator[tuple[bytes, bytes]]:
        held, last = self._held[part], None
        runs = [self._run(begin, end) for begin, end in self._runs[part]]
        for key, pickled in heapq.merge(*runs, ((key, held[key]) for key in sorted(held))):
            if key != last:
                yield key, pickled
            last = key

    def _run(self, begin: int, end: int) -> Iterator[tuple[bytes, bytes]]:
        stretch = io.BufferedReader(_Stretch(self._file.fileno(), begin, end), _BLOCK)
        while head := stretch.read(_HEAD.size):
            key, size = _HEAD.unpack(head)
            yield key, stretch.read(size)


class _Stretch(io.RawIOBase):
    """The bytes from `begin` to `end` of an open file.

    Reading does not move the file's position, so several ranges can be read at once.
    """

    def __init__(self, descriptor: int, begin: int, end: int):
        self._descriptor, self._place, self._end = descriptor, begin, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = os.pread(self._descriptor, min(len(buffer), self._end - self._place), self._place)
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)
