"""The order of rows, by the sha256 of what they hold, whether memory holds them or not."""

import datetime
import hashlib
import itertools
import random
import tempfile
from decimal import Decimal

import pytest
from memory import peak_memory

from align.data.sorting import RowSorter

ROWS = [{"text": f"Document {i} {'é' * (i % 7)}", "n": i} for i in range(300)]


def by_sha256(rows):
    """Each row once, in the order of the definition."""
    return [row for _, row in sorted((hashlib.sha256(repr(row).encode()).digest(), row) for row in rows)]


@pytest.fixture
def file(tmp_path):
    with tempfile.TemporaryFile(dir=tmp_path) as opened:
        yield opened


def filled(file, budget, rows):
    sorter = RowSorter(file, budget)
    for row in rows:
        sorter.add("train", row)
    return sorter


@pytest.mark.parametrize("budget", [0, 1000, 30_000, 10**9])
@pytest.mark.parametrize("seed", [1, 2])
def test_rows_come_in_the_order_of_their_sha256_each_once(file, budget, seed):
    mixed = random.Random(seed).choices(ROWS, k=200) + ROWS + ROWS[:50] * 3
    sorter = filled(file, budget, mixed)
    assert (file.tell() == 0) == (budget == 10**9)
    assert list(sorter.rows("train")) == by_sha256(ROWS)
    keys = list(sorter.keys("train"))
    assert keys == sorted({hashlib.sha256(repr(row).encode()).digest() for row in ROWS})


def test_parts_are_apart_and_an_unknown_one_is_empty(file):
    sorter = RowSorter(file, 2000)
    for i, row in enumerate(ROWS):
        sorter.add(("train", "test")[i % 3 == 0], row)
        sorter.add("test", ROWS[0])
    assert list(sorter.rows("test")) == by_sha256(ROWS[::3])
    assert list(sorter.rows("train")) == by_sha256(row for i, row in enumerate(ROWS) if i % 3)
    assert list(sorter.rows("validation")) == []


def test_rows_are_read_as_often_as_one_likes_also_side_by_side(file):
    sorter = filled(file, 1000, ROWS)
    assert list(itertools.islice(sorter.rows("train"), 10)) == by_sha256(ROWS)[:10]
    assert list(zip(sorter.rows("train"), sorter.rows("train"), strict=True)) == [(r, r) for r in by_sha256(ROWS)]


def test_values_of_every_kind_come_back(file):
    rows = [
        {"text": "half \ud800 \x00 \u2028", "bytes": b"\xff\x00", "none": None, "yes": True},
        {
            "n": 2**70,
            "x": 1e-300,
            "when": datetime.datetime(2020, 1, 2, 3, 4, 5, 6, datetime.UTC),
            "d": Decimal("1.10"),
        },
        {"nested": [{"role": "user", "content": ["a", (1, 2)]}], "long": "ab" * 200_000},
        {},
    ]
    for budget in (0, 10**9):
        found = list(filled(file, budget, rows).rows("train"))
        assert sorted(map(repr, found)) == sorted(map(repr, rows))


CHILD = """
import random, sys, tempfile
from pathlib import Path
from align.data import records
from align.data.sorting import RowSorter
records.GROUP_CHARS, records.BATCH_ROWS = 2**20, 100
folder, count, noise = Path(sys.argv[1]), int(sys.argv[2]), random.Random(1)
with tempfile.TemporaryFile(dir=folder) as file:
    sorter = RowSorter(file, 2**20)
    for i in range(count):
        sorter.add("train", {"text": noise.randbytes(5000).hex()})
    class Rows:  # can be read again, as an iterator cannot
        def __iter__(self):
            return sorter.rows("train")
    assert records.write_rows(folder, "train", Rows()) == count
assert sum(len(row["text"]) for row in records.read_rows([folder], "train")) == count * 10_000
"""


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """From 10 MB of rows to 50 MB, sorted, written and read again: a group and a batch of them are in memory."""
    small, large = (peak_memory(CHILD, tmp_path, count) for count in (1000, 5000))
    assert large - small < 25e6
