"""Run numbered trials of several parts, one line of results each, and continue where an earlier start stopped."""

from __future__ import annotations

import argparse
import collections
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def run_trials(
    description: str | None,
    counts: Mapping[str, int],
    minutes: float,
    prepared: Callable[[], AbstractContextManager[Callable[[str, int], Row]]],
) -> int:
    """Read the command line, run the trials that are left, and give the exit code: 1 where any found something wrong.

    Args:
        description: of the program, for its help.
        counts: how many trials each part has.
        minutes: when it stops, unless the command line says otherwise.
        prepared: makes what the trials need, and gives a function from a part and a number to a row with `wrong`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--only", choices=counts)
    options = parser.parse_args()
    parts = [options.only] if options.only else list(counts)
    results = options.results.absolute()
    rows: list[Row] = []
    if results.exists():
        rows = [json.loads(line) for line in results.read_bytes().split(b"\n") if line]
    done = collections.Counter(row["part"] for row in rows)
    until = time.monotonic() + 60 * options.minutes
    left = [(part, number) for part in parts for number in range(done[part], counts[part])]
    with prepared() as attempt:
        for part, number in left:
            if time.monotonic() > until:
                break
            row = {"part": part, "trial": number, **attempt(part, number)}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
            if row["wrong"]:
                print(json.dumps(row), flush=True)
    for each in parts:
        own = [row for row in rows if row["part"] == each]
        print(f"{each}: {sum(bool(row['wrong']) for row in own)} of {len(own)} trials found something wrong")
    return int(any(row["wrong"] for row in rows))
