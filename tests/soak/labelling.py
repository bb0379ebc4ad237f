"""Let 50 labelers give 2,000 votes while the labelling server is killed every 2 seconds; no vote may be lost.

    python tests/soak/labelling.py RESULTS.jsonl [--minutes 10]

Labelers leave requests before the answer, repeat them with the same name, and vote again with a new name. They think
for 2 seconds on average, which is far less than people do. A trial is wrong where

* an acknowledged vote is not stored, or is stored twice, or with other ranks;
* an item has more or fewer votes than its overlap asks for;
* SQLite finds the file damaged;
* 5 % of the answers or more took 200 ms or longer. A try that a killed server never answered does not count.

Each trial adds one line to RESULTS.jsonl. Start it again with the same file and it continues with the next one. The
exit code is 1 where a trial, of this start or of one before, found something wrong.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from label_server import load  # noqa: E402
from trials import run_trials  # noqa: E402

COUNTS = {"load": 3}
_P95_SECONDS = 0.2


@contextlib.contextmanager
def prepared() -> Iterator[Callable[[str, int], dict[str, Any]]]:
    def attempt(part: str, number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="labelling-") as folder:
            found = load(Path(folder), labelers=50, votes_each=40, kill_after=repeat(2.0), think=2.0, seed=number)
        wrong = [*found.wrong]
        if found.p95 >= _P95_SECONDS:
            wrong.append(f"95 % of the answers took up to {1000 * found.p95:.0f} ms")
        return {**found._asdict(), "wrong": wrong}

    yield attempt


if __name__ == "__main__":
    sys.exit(run_trials(__doc__, COUNTS, 10.0, prepared))
