"""Kill and stop every stage, one rank, and sweeps, at random moments, and compare with what nobody disturbed.

    python tests/soak/kills.py RESULTS.jsonl [--minutes 20] [--only stage|ranks|sweep]

A trial starts a step of the toy pipeline (tests/conf), sends it a signal, gives the same command again until it is
done, and compares weights and all other files, the log, events, metrics and `latest` with an undisturbed run of the
same command. Nothing may be left below work/, and no process. Each trial adds one line to RESULTS.jsonl. Start it
again with the same file and it continues with the next one. Trial N is the same each time, but for the moment at
which the signal arrives. The exit code is 1 where any trial, of this start or of one before, found something wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_ENDPOINT": "http://127.0.0.1:9"}
# Forked processes begin at once, where each new one imports torch for seconds; none of them runs here.
import torch  # noqa: E402, F401
from processes import left_of, ranks_of  # noqa: E402

import align.stages.pretrain  # noqa: E402, F401
from align.cli.main import main  # noqa: E402
from align.store.sweep_records import fates  # noqa: E402

CHECKPOINTING = ("pretrain", "sft", "reward", "ppo")
STAGES = ("data", "tokenizer", "tokens", *CHECKPOINTING, "compare", "evaluate")
STEPS = {"data": "text", "tokens": "pretrain.tokens"}
TOY = ("run", "pipeline=toy", "--config-dir", str(TESTS / "conf"), "tracker=none")
LAUNCHERS = ("basic", "joblib", "submitit_local")
# Files that show how far a step is, below the store; STAGE is the stage's name.
MOMENTS = {
    "begun": "work/STAGE/*/out",
    "logging": "work/STAGE/*/out/metrics.jsonl",
    "saving": "work/STAGE/*/checkpoints/.step-*",
    "saved": "work/STAGE/*/checkpoints/step-*",
    "committing": "work/STAGE/*/out/*manifest*",
    "committed": "objects/STAGE/*",
}
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT, "HUP": signal.SIGHUP}
STOPPED = {"TERM": 143, "INT": 130, "HUP": 129}
LEFT_SECONDS = 30.0  # in which what was started has to be gone, once the process that started it is


class Trial(NamedTuple):
    """What is disturbed, how and when."""

    kind: str  # stage, ranks, sweep
    stage: str
    launcher: str
    processes: int
    checkpoint_seconds: int
    signal: str  # of SIGNALS, or TERM TERM
    target: str  # parent, rank 0, rank 1, member
    moment: str  # of MOMENTS, or random

    def command(self, store: Path) -> list[str]:
        given = [f"step={STEPS.get(self.stage, self.stage)}", f"hardware.checkpoint_seconds={self.checkpoint_seconds}"]
        if self.processes > 1:
            given.append("hardware=two_processes")
        if self.kind == "sweep":
            # The share of the cores of a member depends on how many are left, and rounding on it.
            given += [f"launcher={self.launcher}", "hardware.threads=1", "steps.ppo.seed=1,2", "-m"]
        return [*TOY, f"store={store}", *given]


def trial_of(number: int, only: str | None) -> Trial:
    rng = random.Random(number)
    kind = only or rng.choices(("stage", "ranks", "sweep"), (16, 3, 1))[0]
    stage = {"stage": rng.choice(STAGES), "ranks": rng.choice((*CHECKPOINTING, "compare", "evaluate")), "sweep": "ppo"}
    how = rng.choice(("KILL", "KILL", "KILL", "TERM", "TERM", "INT", "HUP", "TERM TERM"))
    target = "parent"
    if kind == "ranks" and how == "KILL":
        target = rng.choice(("parent", "rank 0", "rank 1"))
    launcher = rng.choice(LAUNCHERS) if kind == "sweep" else "none"
    if kind == "sweep" and how == "KILL" and launcher != "basic":
        target = rng.choice(("parent", "member"))
    moment = rng.choice(("random", "random", "random", *MOMENTS))
    return Trial(kind, stage[kind], launcher, 2 if kind == "ranks" else 1, rng.choice((0, 2)), how, target, moment)


# -- processes -----------------------------------------------------------------------------------------------------


def start(command: list[str], printed: Path) -> int:
    """The command in a process and session of its own; what it prints is added to a file."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in SIGNALS.values():
            if number != signal.SIGKILL:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with printed.open("ab") as file:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = main(command)
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    os._exit(code)


def ended(pid: int, patience: float) -> int | None:
    """The exit code as a shell says it; None where it has not ended after so many seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        time.sleep(0.005)
    return None


def target_of(trial: Trial, pid: int, store: Path) -> int | None:
    if trial.target.startswith("rank"):
        own = ranks_of(pid)
        return own[int(trial.target[-1])] if len(own) == 2 else None
    if trial.target == "member":
        running = [f.pid for folder in store.glob("sweeps/*") for f in fates(folder).values() if f.state == "running"]
        return running[-1] if running else None
    return pid


# -- what came of it -----------------------------------------------------------------------------------------------


def without_times(row: Any) -> Any:
    if isinstance(row, dict):
        return {name: without_times(value) for name, value in row.items() if not name.startswith(("time/", "seconds"))}
    return [without_times(value) for value in row] if isinstance(row, list) else row


def made(store: Path, stage: str) -> dict[str, Any]:
    """Everything that an undisturbed run has, too: of each artifact of a stage its files, log, events and metrics."""
    found: dict[str, Any] = {}
    for path in sorted(store.glob(f"objects/{stage}/*/manifest.json")):
        manifest = json.loads(path.read_text())
        logs = {file.name: file for file in path.parent.glob("*.jsonl")}
        found[path.parent.name] = {
            "files": {n: f["sha256"] for n, f in sorted(manifest["files"].items()) if n not in logs},
            "metrics": without_times(manifest["metrics"]),
            "config": manifest["config"],
            "inputs": {
                slot: [(entry["ref"], entry["key"]) for entry in group] for slot, group in manifest["inputs"].items()
            },
            **{n: [without_times(json.loads(line)) for line in f.read_text().splitlines()] for n, f in logs.items()},
        }
    for alias in sorted(store.glob("names/toy/*/aliases/latest")):
        version = json.loads(alias.read_text())["version"]
        record = json.loads((alias.parent.parent / f"v{version}.json").read_text())
        if record["stage"] == stage:
            found[f"latest of {alias.parts[-3]}"] = record["key"]
    return found


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [*dict.fromkeys([*found, *expected])]
        return [d for n in names for d in differences(found.get(n), expected.get(n), f"{where}/{n}")]
    return [] if found == expected else [f"{where}: {str(found)[:80]} for {str(expected)[:80]}"]


class World:
    """A store in which the toy pipeline has run, and what undisturbed commands come to."""

    def __init__(self, folder: Path):
        self.folder, self.finished = folder, folder / "finished"
        self.expected: dict[Any, tuple[dict[str, Any], float]] = {}
        if not (folder / "whole").exists():
            shutil.rmtree(self.finished, ignore_errors=True)
            command = [*TOY, f"store={self.finished}"]
            assert ended(start(command, folder / "finished.txt"), 600) == 0, (folder / "finished.txt").read_text()
            (folder / "whole").touch()

    def fresh(self, trial: Trial) -> Path:
        """A copy in which the stage is to be done."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.finished, store)
        shutil.rmtree(store / "objects" / trial.stage)
        return store

    def undisturbed(self, trial: Trial) -> tuple[dict[str, Any], float]:
        """What the command comes to, and the seconds that it takes."""
        # Launchers and the times of saving change no result, but which of a sweep's members is `latest`.
        what = (trial.kind, trial.stage, trial.processes, trial.launcher)
        if what not in self.expected:
            store, begun = self.fresh(trial), time.monotonic()
            printed = self.folder / "undisturbed.txt"
            printed.unlink(missing_ok=True)
            assert ended(start(trial.command(store), printed), 600) == 0, printed.read_text()
            self.expected[what] = (made(store, trial.stage), time.monotonic() - begun)
        return self.expected[what]


# -- a trial -------------------------------------------------------------------------------------------------------


def wait_for(trial: Trial, pid: int, store: Path, seconds: float, rng: random.Random) -> int | None:
    """The exit code of a process that ended before the moment came; None at the moment."""
    if trial.moment == "random":
        return ended(pid, rng.uniform(0, seconds))
    pattern = MOMENTS[trial.moment].replace("STAGE", trial.stage)
    until = time.monotonic() + 300
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):  # the step removes folders while glob reads them
            if any(store.glob(pattern)):
                return None
        code = ended(pid, 0.002)
        if code is not None:
            return code
    return None


def run_trial(trial: Trial, world: World, rng: random.Random) -> dict[str, Any]:
    expected, seconds = world.undisturbed(trial)
    store, printed, wrong = world.fresh(trial), world.folder / "printed.txt", []
    printed.unlink(missing_ok=True)
    pid = start(trial.command(store), printed)
    code, took, sent = wait_for(trial, pid, store, seconds, rng), 0.0, False
    until = time.monotonic() + 120
    while code is None:
        target = target_of(trial, pid, store)
        if target is not None or time.monotonic() > until:
            break
        code = ended(pid, 0.01)  # the ranks or members have not begun
    if code is None and target is not None:
        sent, begun = True, time.monotonic()
        for name in trial.signal.split():
            try:
                os.kill(target, SIGNALS[name])
            except ProcessLookupError:
                sent = False
            time.sleep(rng.uniform(0, 0.05))
        code = ended(pid, 180)
        took = time.monotonic() - begun
    if code is None:
        wrong.append("it did not end")
        os.kill(pid, signal.SIGKILL)
        code = ended(pid, 10)
    wrong += after_signal(trial, store, code, sent)
    wrong += [f"left: {line[:160]}" for line in left_of(pid, store, seconds=LEFT_SECONDS)]
    tries = 0
    while code != 0 and tries < 3:  # an interrupted sweep may need none: the member itself went on
        code, tries = ended(start(trial.command(store), printed), 600), tries + 1
    wrong += [f"again: exit code {code}"] if code else []
    wrong += ["more than one command to go on"] if tries > 1 else []
    found = made(store, trial.stage)
    if trial.launcher in ("joblib", "submitit_local"):  # members end in any order, and `latest` is the last of them
        found, expected = ({n: v for n, v in each.items() if "latest" not in n} for each in (found, expected))
    wrong += differences(found, expected)
    wrong += [f"left: {path.relative_to(store)}" for path in store.glob("work/*/*")]
    text = printed.read_text(errors="replace")
    wrong += ["a traceback was printed"] if "Traceback" in text else []
    wrong += ["a defect was reported"] if "a bug in align" in text else []
    if wrong:
        print(text, file=sys.stderr)
    return {"sent": sent, "seconds_to_end": round(took, 2), "wrong": wrong}


def after_signal(trial: Trial, store: Path, code: int | None, sent: bool) -> list[str]:
    """What is wrong about how the process ended."""
    wrong = []
    if not sent or code == 0:  # it came too late
        return wrong
    if trial.signal in STOPPED:
        allowed = {STOPPED[trial.signal]}
    elif trial.signal == "TERM TERM":
        allowed = {143}
    else:
        allowed = {137}
    if code not in allowed:
        wrong.append(f"exit code {code} for {allowed}")
    if trial.kind != "sweep" and trial.signal in STOPPED:
        for work in store.glob(f"work/{trial.stage}/*"):
            saved = [int(path.name.partition("-")[2]) for path in work.glob("checkpoints/step-*")]
            log = work / "out/metrics.jsonl"
            logged = [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []
            if trial.stage in CHECKPOINTING and logged and max(logged) > max(saved, default=0):
                wrong.append(f"steps lost: {max(logged)} logged, {max(saved, default=0)} saved")
    return wrong


def run(results: Path, seconds: float, only: str | None, tell: Callable[[str], None]) -> bool:
    """Go on with the trials; True where nothing was wrong."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    begun, number = time.monotonic(), len(rows)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        world = World(Path(folder))
        while time.monotonic() - begun < seconds:
            trial, started = trial_of(number, only), time.monotonic()
            row = {"trial": number, **trial._asdict(), **run_trial(trial, world, random.Random(f"{number}-when"))}
            row["seconds"] = round(time.monotonic() - started, 1)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
            number += 1
            tell(f"{number}: {' '.join(map(str, trial))}: {'; '.join(row['wrong']) or 'the same'}")
    counts = collections.Counter((row["kind"], bool(row["wrong"])) for row in rows)
    for kind in sorted({row["kind"] for row in rows}):
        tell(f"{kind}: {counts[kind, True]} of {counts[kind, True] + counts[kind, False]} trials found something wrong")
    tell(f"{len(rows)} trials, {sum(row['sent'] for row in rows)} signals arrived while it ran")
    return not any(row["wrong"] for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--only", choices=("stage", "ranks", "sweep"))
    options = parser.parse_args()
    passed = run(options.results, 60 * options.minutes, options.only, lambda line: print(line, flush=True))
    sys.exit(0 if passed else 1)
