"""Run the reliability plan part by part, and write the results into docs/reference/reliability.md.

    python tests/soak/run.py [--minutes 90] [--only PART ...] [--table]

Each part is a program in this folder. It has a results file in .soak/ and continues where it stopped. The minutes are
divided by the parts' weights; a part that ends early leaves its time to those after it. With --table nothing is run:
the table is written from the results that exist. The exit code is 1 if a part found something wrong or failed itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".soak"
PAGE = ROOT / "docs/reference/reliability.md"
_FEW = 20  # trials below which a bound says nothing
BEGIN, END = "<!-- begin: tests/soak/run.py -->", "<!-- end -->"


class Part(NamedTuple):
    """One program.

    Attributes:
        name: of its file and of its results.
        weight: its share of the time.
        rows: for each kind of its trials what a trial is, in words; a trial's kind is its `part`, else its `kind`.
    """

    name: str
    weight: float
    rows: dict[str, str]


PARTS = (
    Part(
        "kills",
        45,
        {
            "stage": "a stage in one process is killed or stopped at any moment, then the command is given again",
            "ranks": "a stage in two processes: one process or the parent is killed or stopped",
            "sweep": "a sweep by `basic`, `joblib` or `submitit_local`: a member or the parent is killed or stopped",
        },
    ),
    Part(
        "store",
        8,
        {
            "mutations": "one file of a store or of a step in progress is changed: detected before it is used",
            "clean": "normal use of a store: nothing is reported as damaged",
            "publishers": "8 processes publish 1,000 artifacts and are killed 200 times; 4 processes read meanwhile",
            "garbage": "garbage is removed 100 times while old artifacts are named and read",
        },
    ),
    Part(
        "configs",
        15,
        {
            "wrong": "a config with one or more mistakes: refused in a line that names one, nothing is written",
            "valid": "a config without mistakes: planned",
            "processes": "a wrong or a right command line, in its own process",
        },
    ),
    Part(
        "files",
        20,
        {
            "files": "a random or damaged data file: read, or refused in a line that names it",
            "rows": "100 random rows, in all formats: read, or refused by file and line",
            "models": "a hostile, odd or damaged model folder: imported or refused, and no code in it runs",
        },
    ),
    Part(
        "health",
        12,
        {
            "broken": "a PPO run is broken on purpose: an event reports it, or the run is refused",
            "healthy": "a healthy PPO run with another seed: no event",
        },
    ),
    Part(
        "labelling",
        4,
        {"load": "50 labelers give 2,000 votes while their server is killed every 2 s: each stored once, p95 < 200 ms"},
    ),
    Part("ppo_long", 10, {"result": "PPO for 2,000 iterations, killed and stopped 10 times: memory, open files, disk"}),
)


def results_of(part: Part) -> list[dict[str, Any]]:
    file = RESULTS / f"{part.name}.jsonl"
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    return [json.loads(line) for line in lines if line]


def run_part(part: Part, minutes: float) -> bool:
    """True where its program found nothing wrong, and did not fail itself."""
    RESULTS.mkdir(exist_ok=True)
    program = Path(__file__).with_name(f"{part.name}.py")
    given = [str(RESULTS / f"{part.name}.jsonl"), "--minutes", f"{minutes:.1f}"]
    print(f"-- {part.name}, at most {minutes:.0f} minutes", flush=True)
    return subprocess.run([sys.executable, str(program), *given], check=False, cwd=ROOT).returncode == 0


def table() -> str:
    """One row for each kind of trial. If none of n trials was wrong, the rate is at most 3/n with 95 % confidence."""
    lines = ["| what is tried | trials | wrong | at most | command |", "|---|---|---|---|---|"]
    for part in PARTS:
        rows = results_of(part)
        for kind, what in part.rows.items():
            own = [row for row in rows if row.get("part", row.get("kind")) == kind]
            wrong = sum(bool(row.get("wrong")) for row in own)
            if len(own) < _FEW:
                bound = ""
            elif wrong:
                bound = f"{100 * wrong / len(own):.2g} % were"
            else:
                bound = f"{300 / len(own):.2g} %"
            command = f"`python tests/soak/{part.name}.py .soak/{part.name}.jsonl`"
            lines.append(f"| {what} | {len(own):,} | {wrong:,} | {bound} | {command} |")
    return "\n".join(lines)


def write_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    chosen = [part for part in PARTS if options.only is None or part.name in options.only]
    passed = True
    if not options.table:
        until = time.monotonic() + 60 * options.minutes
        for place, part in enumerate(chosen):
            left = (until - time.monotonic()) / 60
            passed &= run_part(part, left * part.weight / sum(each.weight for each in chosen[place:]))
    write_table()
    print(table())
    return int(not passed or any(row.get("wrong") for part in chosen for row in results_of(part)))


if __name__ == "__main__":
    sys.exit(main())
