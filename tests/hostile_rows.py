"""Rows as nobody should write them, made at random: any JSON, under names that formats and layouts read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from align.data.files import RawRow
from align.data.formats import FORMATS, LAYOUTS, Layout
from align.data.records import Dropped, Malformed, check_row, convert
from align.data.row_reader import RowReader

CHAT = "\n\nHuman: Can ducks swim?\n\nAssistant: Yes.\n\nHuman: And hens?\n\nAssistant:"
_FIELDS = (
    "text messages prompt completion chosen rejected responses ranks instruction input output context response "
    "preference output_1 output_2 role content file other"
).split()
_TEXTS = [
    "",
    " ",
    "hi",
    "user",
    "assistant",
    "\ud800",
    "é🌍",
    "\x00",
    CHAT,
    CHAT + " Hardly.",
    " = T = \n x",
    "# a\nb\n-----\nc",
]


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value, often one that looks like what a field should hold."""
    kind = rng.randrange(9 if depth > 3 else 14)
    if kind < 4:
        return rng.choice(_TEXTS)
    if kind < 7:
        return rng.choice([None, True, False, 0, 1, 2, -7, 10**30, 0.5, float("nan"), float("inf")])
    if kind < 9:
        return rng.choice([[], {}, [[]], [{}], [None], ["a", "b"], [1, 2]])
    if kind < 11:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 13:
        roles = ["user", "assistant", "system", "bot", None, 3, [], {}]
        return [{"role": rng.choice(roles), "content": anything(rng, depth + 1)} for _ in range(rng.randrange(4))]
    return {rng.choice(_FIELDS): anything(rng, depth + 1) for _ in range(rng.randrange(4))}


def rows_of_format(name: str, rng: random.Random, count: int) -> int:
    """Read random rows as a format says; how many were kept. A row is read, malformed or dropped; else this raises."""
    record, kept = FORMATS[name][0], 0
    for _ in range(count):
        row = {field: anything(rng) for field in rng.sample(_FIELDS, rng.randrange(len(_FIELDS)))}
        if isinstance(row.get("responses"), list):  # lists of what is no text have a test in test_records
            row["responses"] = [rng.choice(_TEXTS) for _ in row["responses"]]
        try:
            for found in FORMATS[name][1](row):
                kept += bool(check_row(record, convert(found, record, record)))
        except (Malformed, Dropped):
            pass
    return kept


def rows_of_layout(layout: Layout, rng: random.Random, count: int) -> None:
    """Read random rows that have a layout's columns, each by itself and as the only one of its group."""
    optional = "system tools history input context label message_tree_id rank weight score_chosen text".split()
    for _ in range(count):
        names = [*layout.columns, *rng.sample(optional, 2)]
        row = {name: anything(rng) for name in names}
        for each in _attempts(RowReader(layout.record), row):
            try:
                for found in each:
                    check_row(layout.record, found.made)
            except (Malformed, Dropped):
                pass


def _attempts(reader: RowReader, row: dict[str, Any]) -> Iterator[Any]:
    """What a row makes by itself, then what it makes as the only one of its group."""
    yield reader.read(RawRow("a.jsonl:1", row))
    yield from (found for _, found in reader.joined())


# What a run of random rows is read as.
READERS = [*FORMATS, *LAYOUTS]
