"""A benchmark reads a process's answers although that process and its libraries print other lines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

_CHATTY = """
import json, os, sys
print("wandb: W&B syncing is set to offline", flush=True)
os.system("echo a library's own process")
answers = os.fdopen(int(os.environ["ANSWERS_FD"]), "w")
settings = json.load(open(sys.argv[1]))
print(json.dumps({"ready": True, "size": settings["size"]}), file=answers, flush=True)
while sys.stdin.readline():
    print("step", flush=True)
    print(json.dumps({"seconds": 2.0}), file=answers, flush=True)
"""
_BROKEN = "import sys; print('to standard output'); print('no such model', file=sys.stderr); sys.exit(3)"
_ECHO = """
import os, sys
print("chatter")
with os.fdopen(int(os.environ["ANSWERS_FD"]), "w") as answers:
    for line in sys.stdin:
        answers.write(line.upper())
"""


def test_a_side_answers_apart_from_what_it_prints(tmp_path: Path) -> None:
    from _peer import Side

    side = Side([sys.executable, "-c", _CHATTY], {"size": 7}, tmp_path, {})
    try:
        assert side.ready == {"ready": True, "size": 7}
        for _ in range(2):
            side.turn()
        assert side.median("seconds") == 2.0
    finally:
        side.close()


def test_a_side_that_ends_early_says_why(tmp_path: Path) -> None:
    from _peer import Side

    with pytest.raises(SystemExit, match=r"(?s)ended early with 3.*no such model"):
        Side([sys.executable, "-c", _BROKEN], {}, tmp_path, {})


def test_what_is_asked_once_comes_back_whole() -> None:
    from _peer import asked

    lines = [f"line {number}" for number in range(20_000)]  # more than a pipe holds, both ways
    assert asked([sys.executable, "-c", _ECHO], "".join(f"{line}\n" for line in lines)) == [s.upper() for s in lines]
    with pytest.raises(SystemExit, match="no such model"):
        asked([sys.executable, "-c", _BROKEN])
