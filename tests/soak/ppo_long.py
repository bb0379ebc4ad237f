"""Run PPO for 2,000 iterations that are killed and stopped ten times, and look for what grows or gets slower.

    python tests/soak/ppo_long.py RESULTS.jsonl [--minutes 30] [--plot FILE.svg]

It makes the toy pipeline (tests/conf) once, in RESULTS.store, and then runs its PPO step for 2,000 small iterations.
Every 20 iterations it adds one line to RESULTS.jsonl: resident memory, open files, threads and processor seconds of the
process, and bytes of the step's folder. Ten signals, SIGTERM or SIGKILL, arrive in the first 1,200 iterations; after
each, the same command resumes. The program resumes, too, when it is given again. The last line is the result: slopes
with 95 % intervals, over all processes, each after its first 120 iterations, and the processor time of an iteration in
the first and the last 200. The exit code is 1 where something was wrong, and 2 where the time was too short.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from kills import SIGNALS, TOY, ended, start

from align.store.artifacts import read_json_lines

ITERATIONS, EVERY, SIGNALS_SENT, LAST_SIGNAL = 2000, 20, 10, 1200
WARM_UP = 120  # iterations of a process in which caches fill
SMALL = ("num_iterations=2000", "rollout_batch_size=4", "minibatch_size=4", "max_new_tokens=8", "ptx_coef=0")
CODES = {"TERM": 143, "KILL": 137}
MOST_KB = 1.0  # an iteration: 2,000 of them would then need 2 MB more
MOST_SLOWER = 0.2  # of the processor time of an iteration at the start


class Moment(NamedTuple):
    iteration: int
    signal: str


def moments() -> list[Moment]:
    rng = random.Random(0)
    at = sorted(rng.sample(range(EVERY, LAST_SIGNAL), SIGNALS_SENT))
    return [Moment(iteration, rng.choice(list(CODES))) for iteration in at]


# -- one process ---------------------------------------------------------------------------------------------------


def last_step(log: Path) -> int:
    """The number of the last whole line; 0 where there is none. The log is cut back where a process resumes."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except ValueError:  # half of a line that was cut back and written again meanwhile
        return 0


def measured(pid: int, work: Path) -> dict[str, Any]:
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "rss_kib": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        "disk_bytes": sum(size_of(path) for path in work.rglob("*")),
    }


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # an older checkpoint, removed meanwhile
        return 0


def one_life(command: list[str], store: Path, printed: Path, life: int, moment: Moment | None, tell: Any) -> int:
    """Start the command and sample it until it ends or the moment comes; its exit code."""
    pid = start(command, printed)
    sampled, sent = -1, False
    while (code := ended(pid, 0.02)) is None:
        work = next(iter(store.glob("work/ppo/*")), None)
        if work is None:
            continue
        step = last_step(work / "out/metrics.jsonl")
        sampled = step if sampled < 0 else sampled
        if step // EVERY > sampled // EVERY:
            sampled = step
            try:
                found = measured(pid, work)
            except (FileNotFoundError, ProcessLookupError, KeyError):
                continue  # it is ending
            tell({"part": "sample", "life": life, "iteration": step, "clock": time.time(), **found})
        if moment is not None and step >= moment.iteration and not sent:
            os.kill(pid, SIGNALS[moment.signal])
            sent = True
    return code


# -- what is found -------------------------------------------------------------------------------------------------


def slope(rows: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Least squares over iterations with a level for each process: the slope, and half of its 95 % interval.

    Neighbouring samples are alike, so the interval is Newey and West's, with 5 lags.
    """
    lives = sorted({row["life"] for row in rows})
    x, y = (np.array([float(row[key]) for row in rows]) for key in ("iteration", name))
    for life in lives:
        own = np.array([row["life"] == life for row in rows])
        x[own] -= x[own].mean()
        y[own] -= y[own].mean()
    found = float(x @ y / (x @ x))
    moved = x * (y - found * x)
    spread = float(moved @ moved)
    for lag in range(1, 6):
        spread += 2 * (1 - lag / 6) * float(moved[lag:] @ moved[:-lag])
    return found, 1.96 * max(spread, 0.0) ** 0.5 / float(x @ x)


def warm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(row["life"], row["iteration"])
    kept = [row for row in rows if row["iteration"] >= first[row["life"]] + WARM_UP]
    several = [row["life"] for row in kept]
    return [row for row in kept if several.count(row["life"]) >= 3]


def cpu_an_iteration(rows: list[dict[str, Any]], first: int, last: int) -> float:
    """The median over pairs of neighbouring samples of one process."""
    pairs = [(a, b) for a, b in itertools.pairwise(rows) if a["life"] == b["life"]]
    chosen = [(a, b) for a, b in pairs if first <= a["iteration"] and b["iteration"] <= last]
    costs = [(b["cpu_seconds"] - a["cpu_seconds"]) / (b["iteration"] - a["iteration"]) for a, b in chosen]
    return float(np.median(costs))


def result(rows: list[dict[str, Any]], store: Path) -> dict[str, Any]:
    samples = [row for row in rows if row["part"] == "sample"]
    kept, wrong = warm(samples), [line for row in rows for line in row.get("wrong", ())]
    hours = sum(b["clock"] - a["clock"] for a, b in itertools.pairwise(samples) if a["life"] == b["life"])
    counted = sum(b["iteration"] - a["iteration"] for a, b in itertools.pairwise(samples) if a["life"] == b["life"])
    an_hour = counted / (hours / 3600)
    memory, spread = (1.024 * value for value in slope(kept, "rss_kib"))
    if memory - spread > MOST_KB:
        wrong.append(f"memory grows by {memory:.2f} kB an iteration")
    found: dict[str, Any] = {
        "memory_kb_an_iteration": [round(memory, 3), round(spread, 3)],
        "memory_mb_an_hour": [round(value * an_hour / 1e3, 2) for value in (memory, spread)],
        "iterations_an_hour": round(an_hour),
    }
    for name in ("files", "threads"):
        grown, error = slope(kept, name)
        found[f"{name}_an_iteration"] = [round(grown, 5), round(error, 5)]
        if (grown - error) * ITERATIONS > 1:
            wrong.append(f"{name} grow by {grown:.4f} an iteration")
    disk, error = slope(kept, "disk_bytes")
    found["disk_bytes_an_iteration"] = [round(disk), round(error)]
    begun, end = cpu_an_iteration(samples, 0, 300), cpu_an_iteration(samples, ITERATIONS - 300, ITERATIONS)
    found["cpu_ms_an_iteration"] = {"first": round(1e3 * begun, 2), "last": round(1e3 * end, 2)}
    if end > (1 + MOST_SLOWER) * begun:
        wrong.append(f"an iteration takes {1e3 * end:.1f} ms at the end and {1e3 * begun:.1f} ms at the start")
    logs = list(store.glob("objects/ppo/*/metrics.jsonl"))
    steps = max(([int(row["step"]) for row in read_json_lines(log)] for log in logs), key=len, default=[])
    if steps != list(range(1, ITERATIONS + 1)):
        wrong.append("metrics.jsonl lacks an iteration or has one twice")
    wrong += [f"left: {path.relative_to(store)}" for path in store.glob("work/*/*")]
    signals = [row["signal"] for row in rows if row["part"] == "signal"]
    return {"part": "result", "signals": signals, **found, "wrong": wrong}


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ppo"
    from matplotlib import pyplot

    samples = [row for row in rows if row["part"] == "sample"]
    shown = (("rss_kib", 1 / 976.5625, "memory, MB"), ("disk_bytes", 1e-6, "step's folder, MB"), ("files", 1, "files"))
    figure, axes = pyplot.subplots(len(shown), 1, sharex=True, figsize=(7, 5), layout="constrained")
    for axis, (name, scale, label) in zip(axes, shown, strict=True):
        for life in sorted({row["life"] for row in samples}):
            own = [row for row in samples if row["life"] == life]
            axis.plot([row["iteration"] for row in own], [scale * row[name] for row in own], color="#3366aa", lw=1)
        for row in rows:
            if row["part"] == "signal":
                axis.axvline(row["iteration"], color="#cc6633", lw=0.6, ls=":")
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.2 * scale * max(row[name] for row in samples))
    axes[-1].set_xlabel("iteration (dotted: a SIGTERM or SIGKILL arrives, and the command is given again)")
    figure.savefig(file, metadata={"Date": None})


# -- the whole -----------------------------------------------------------------------------------------------------


def run(results: Path, seconds: float, drawn: Path | None) -> int:
    rows = read_json_lines(results)
    store, printed, begun = results.with_suffix(".store"), results.with_suffix(".txt"), time.monotonic()

    def tell(row: dict[str, Any]) -> None:
        rows.append(row)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")

    if not (store / "whole").exists():
        assert ended(start([*TOY, f"store={store}"], printed), 600) == 0, printed.read_text()
        (store / "whole").touch()
    command = [*TOY, f"store={store}", "step=ppo", "hardware.checkpoint_seconds=5", *(f"steps.ppo.{k}" for k in SMALL)]
    while not any(row["part"] == "result" for row in rows):
        if time.monotonic() - begun > seconds:
            print("the time was too short; give the same command again")
            return 2
        signals = sum(row["part"] == "signal" for row in rows)
        moment = moments()[signals] if signals < SIGNALS_SENT else None
        life = max((row["life"] for row in rows if row["part"] == "sample"), default=-1) + 1
        code = one_life(command, store, printed, life, moment, tell)
        print(f"process {life}: exit code {code}", flush=True)
        if moment is None:
            if code != 0:
                tell({"part": "end", "wrong": [f"exit code {code}"]})
                break
            tell(result(rows, store))
        else:
            expected = CODES[moment.signal]
            wrong = [] if code == expected else [f"exit code {code} for {expected}"]
            tell({"part": "signal", **moment._asdict(), "wrong": wrong})
    if drawn is not None:
        plot(rows, drawn)
    print(json.dumps(rows[-1], indent=1))
    return 1 if rows[-1]["wrong"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    sys.exit(run(options.results, 60 * options.minutes, options.plot))
