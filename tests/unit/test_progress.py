"""What is told of long work."""

import re

import pytest

from align import progress
from align.progress import Progress


@pytest.mark.parametrize(
    ("total", "line"),
    [
        (3000, r"  data: 2,000/3,000 rows read  [\d,]+/s  0:00 left"),
        (None, r"  data: 2,000 rows read  [\d,]+/s"),
    ],
)
def test_a_plain_line_says_how_far_how_fast_and_how_long_where_that_is_known(monkeypatch, capsys, total, line):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    with Progress("data").over(total, 0, "rows read") as advance:
        advance(1500)
        advance(500)
    assert re.fullmatch(line, capsys.readouterr().err.splitlines()[-1])
