"""Whatever JSON holds, a format reads it or says what is wrong with it."""

import contextlib
import random

import pytest

from align.data.files import RawRow
from align.data.formats import FORMATS, LAYOUTS
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


def anything(rng, depth=0):
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


@pytest.mark.parametrize("name", FORMATS)
def test_a_random_row_is_read_or_malformed_or_dropped(name):
    rng = random.Random(f"rows for {name}")
    record, kept = FORMATS[name][0], 0
    for _ in range(2000):
        row = {field: anything(rng) for field in rng.sample(_FIELDS, rng.randrange(len(_FIELDS)))}
        if isinstance(row.get("responses"), list):  # lists of what is no text have a test in test_records
            row["responses"] = [rng.choice(_TEXTS) for _ in row["responses"]]
        try:
            for found in FORMATS[name][1](row):
                kept += bool(check_row(record, convert(found, record, record)))
        except (Malformed, Dropped):
            pass
    assert kept > 0 or name not in ("text", "prompt", "prompt_completion", "instruction", "book", "wikitext")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.format} of {' '.join(sorted(layout.columns))}")
def test_a_random_row_of_a_layout_s_columns_is_read_or_malformed_or_dropped(layout):
    rng = random.Random(f"rows for {layout}")
    optional = "system tools history input context label message_tree_id rank weight score_chosen text".split()
    for _ in range(300):
        names = [*layout.columns, *rng.sample(optional, 2)]
        row = {name: anything(rng) for name in names}
        for each in attempts(RowReader(layout.record), row):
            with contextlib.suppress(Malformed, Dropped):
                for found in each:
                    check_row(layout.record, found.made)


def attempts(reader, row):
    """What a row makes by itself, then what it makes as the only one of its group."""
    yield reader.read(RawRow("a.jsonl:1", row))
    yield from (found for _, found in reader.joined())
