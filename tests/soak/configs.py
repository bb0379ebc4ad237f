"""Give wrong configs and right ones: each wrong one is refused in a line at its place, each right one is planned.

    python tests/soak/configs.py RESULTS.jsonl [--minutes 30] [--only PART]

Parts:
    wrong       one thing of a command is wrong (tests/hostile_configs.py); the whole way to the plan, in this process
    valid       up to three things of a command are other than usual
    processes   wrong and right ones, by turns, as a process of `python -m align`

Each trial adds one line to RESULTS.jsonl. Start it again with the same file and it continues with the next one. Trial
N is the same each time. The exit code is 1 where a trial, of this start or of one before, found something wrong.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from hostile_configs import Answer, Case, faults_of_plan, faults_of_refusal, right, wrong  # noqa: E402
from trials import run_trials  # noqa: E402

from align.cli.main import main  # noqa: E402
from align.store.artifacts import STORE_VARIABLE  # noqa: E402

COUNTS = {"wrong": 2000, "valid": 200, "processes": 50}
_SECONDS = 300.0  # after which a process hangs


def in_this_process(arguments: list[str]) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def as_a_process(arguments: list[str]) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "align", *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def run_wrong(number: int) -> tuple[list[str], list[str]]:
    case = wrong(number)
    return case.arguments, faults_of_refusal(case, in_this_process)


def run_valid(number: int) -> tuple[list[str], list[str]]:
    return right(number), faults_of_plan(right(number), in_this_process)


def run_process(number: int) -> tuple[list[str], list[str]]:
    if number % 5 == 4:
        return right(number), faults_of_plan(right(number), as_a_process)
    case = possible(number)
    return case.arguments, faults_of_refusal(case, as_a_process)


def possible(number: int) -> Case:
    """The first wrong config from a number on that a system can start a process with: no argument holds a NUL."""
    while any("\0" in word for word in wrong(number).arguments):
        number += 1
    return wrong(number)


RUN: dict[str, Callable[[int], tuple[list[str], list[str]]]] = {
    "wrong": run_wrong,
    "valid": run_valid,
    "processes": run_process,
}


@contextlib.contextmanager
def prepared() -> Iterator[Callable[[str, int], dict[str, Any]]]:
    os.environ.pop(STORE_VARIABLE, None)
    with tempfile.TemporaryDirectory(prefix="configs-") as folder, contextlib.chdir(folder):
        yield attempt


def attempt(part: str, number: int) -> dict[str, Any]:
    try:
        command, found = RUN[part](number)
    except Exception as error:  # a fault of align's that it does not even report
        command, found = [], [f"{type(error).__name__}: {error}"]
    return {"wrong": found, **({"command": command} if found else {})}


if __name__ == "__main__":
    sys.exit(run_trials(__doc__, COUNTS, 30.0, prepared))
