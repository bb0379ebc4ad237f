"""What every benchmark does with its figures: show them, and write them with --json FILE."""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TextIO


def arguments(description: str | None, **options: type) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help='write {"bars": {name: value}, "machine": ...} there')
    for name, kind in options.items():
        parser.add_argument(f"--{name}", type=kind)
    options = parser.parse_args()
    _alone()
    return options


def _alone() -> None:
    """Hold a lock until this process ends: two benchmarks at once would measure each other."""
    file = (Path(tempfile.gettempdir()) / "align-benchmarks.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit("another benchmark is running on this machine; wait for its end") from None
    _held.append(file)


_held: list[TextIO] = []


def report(bars: dict[str, float], file: Path | None) -> None:
    for name, value in bars.items():
        print(f"{name:<44} {value:,.4g}")
    if file is not None:
        machine = {"processor": _processor(), "system": platform.platform(), "python": platform.python_version()}
        file.write_text(json.dumps({"bars": bars, "machine": machine}, indent=1) + "\n")


_WRITTEN = {"score": "{:.3f}", "number": "{:.2f}", "share": "{:.1%}", "signed": "{:+.1%}"}


def written(value: float, kind: str) -> str:
    """As an account has it: a score, a number, a share, or a share with its sign."""
    return _WRITTEN[kind].format(value).replace("%", " %")


def in_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def medians(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each, taken in turns, so that a noisy neighbour disturbs all alike; one round warms up."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for place, work in enumerate(works):
            begun = perf_counter()
            work()
            if number:
                seconds[place].append(perf_counter() - begun)
    return [statistics.median(taken) for taken in seconds]
