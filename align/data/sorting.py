"""Rows in an order that looks random and hangs on their content alone, each once, however many there are."""

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

_HEAD = struct.Struct("32sQ")  # before each row in the file: its sha256 and how many bytes it has
_ENTRY_BYTES = 200  # of a row in memory besides its own: the sha256, two objects, a place in a dict
_BLOCK = 2**16


class RowSorter:
    """Rows of several parts (splits), each part sorted by the sha256 of its rows' `repr`; of rows that are alike, one.

    As many as fit into `budget` are in memory. When they are more, those there are sorted and go to a file, as often
    as it takes, and these runs are merged whenever the rows are asked for: merge sort, Knuth, The Art of Computer
    Programming 3, section 5.4. Memory while merging is 64 KiB a run, and a run is `budget` bytes of rows.

    Args:
        file: an empty one that nobody else can write (what is read back is unpickled), on a disk that holds all rows.
        budget: bytes.
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
        """The sha256s of a part's rows in their order."""
        return (key for key, _ in self._merged(part))

    def rows(self, part: str) -> Iterator[Row]:
        """A part's rows in their order, as often as they are asked for."""
        return (pickle.loads(pickled) for _, pickled in self._merged(part))

    def _spill(self) -> None:
        for part, held in self._held.items():
            begin = self._file.tell()
            for key in sorted(held):
                self._file.write(_HEAD.pack(key, len(held[key])) + held[key])
            self._runs[part].append((begin, self._file.tell()))
        self._file.flush()  # it is read by its descriptor
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
    """The bytes from `begin` to `end` of an open file, read without moving its place: several are read at once."""

    def __init__(self, descriptor: int, begin: int, end: int):
        self._descriptor, self._place, self._end = descriptor, begin, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = os.pread(self._descriptor, min(len(buffer), self._end - self._place), self._place)
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)
