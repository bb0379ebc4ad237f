"""Whatever JSON holds, a format reads it or says what is wrong with it."""

import random

import pytest
from conftest import mostly_slow
from hostile_rows import rows_of_format, rows_of_layout

from align.data.formats import FORMATS, LAYOUTS


@pytest.mark.parametrize("count", mostly_slow([500, 2000], [500]))
@pytest.mark.parametrize("name", FORMATS)
def test_a_random_row_is_read_or_malformed_or_dropped(name, count):
    kept = rows_of_format(name, random.Random(f"rows for {name}"), count)
    assert kept > 0 or name not in ("text", "prompt", "prompt_completion", "instruction", "book", "wikitext")


@pytest.mark.parametrize("count", mostly_slow([100, 300], [100]))
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.format} of {' '.join(sorted(layout.columns))}")
def test_a_random_row_of_a_layout_s_columns_is_read_or_malformed_or_dropped(layout, count):
    rows_of_layout(layout, random.Random(f"rows for {layout}"), count)
