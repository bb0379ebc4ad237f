"""Damage a store, write to it from many processes that are killed, and remove garbage meanwhile; nothing may be lost.

    python tests/soak/store.py RESULTS.jsonl [--minutes 10] [--only PART]

Parts:
    mutations   one file of a store or of a step in progress is changed; it has to be noticed before it is used
    clean       the store is used as it should be; nothing may be noticed
    publishers  8 processes publish 125 artifacts each and are killed 200 times in all, while 4 read
    garbage     one publishes, one reads, one removes garbage

Each trial adds one line to RESULTS.jsonl. Start it again with the same file and it continues with the next one. Trial
N is the same each time. The exit code is 1 where a trial, of this start or of one before, found something wrong.
"""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from conftest import run_toy  # noqa: E402
from trials import run_trials  # noqa: E402

from align.errors import StoreError  # noqa: E402
from align.store.artifacts import Artifact, ArtifactStore  # noqa: E402
from align.store.audit import audit  # noqa: E402
from align.store.checkpoints import load_checkpoint, save_checkpoint, set_damaged_aside  # noqa: E402
from align.store.garbage import find_garbage, remove_garbage  # noqa: E402
from align.store.seals import digest_of  # noqa: E402

COUNTS = {"mutations": 2000, "clean": 1000, "publishers": 1, "garbage": 5}
FORK = multiprocessing.get_context("fork")
RESULT = ("kind", "stage", "key", "inputs", "config", "data", "files", "metrics")


# -- mutations ---------------------------------------------------------------------------------------------------------


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def shorten(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def lengthen(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.randrange(1, 9))


def zero(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    end = rng.randrange(start, len(content)) + 1
    return content[:start] + bytes(end - start) + content[end:]


def edit(content: bytes, rng: random.Random) -> bytes:
    """Change, remove or add one value of a JSON file, or of a row of one."""
    lines = content.splitlines(keepends=True)
    rows = content.startswith(b"{") and len(lines) > 1 and lines[0].rstrip().endswith(b"}")
    place = rng.randrange(len(lines)) if rows else 0
    value = json.loads(lines[place] if rows else content)
    changed = copy.deepcopy(value)
    at = changed
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            if isinstance(at, list):
                at.append("more")
            else:
                at["more"] = 1
            break
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and rng.random() < 0.8:
            at = at[key]
            continue
        if rng.random() < 0.3:
            del at[key]
        else:
            at[key] = rng.choice([0, 1, -1, 0.95, None, "x", [], {}, True, "../../etc/passwd", "9" * 50])
        break
    text = json.dumps(changed).encode()
    return b"".join([*lines[:place], text + b"\n", *lines[place + 1 :]]) if rows else text


def other(content: bytes, rng: random.Random) -> bytes:
    return content  # replaced by a sibling's, see `mutated`


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, shorten, lengthen, zero, edit, other)


def kinds_of_files(store: ArtifactStore, work: Path) -> dict[str, list[Path]]:
    objects = sorted(path for path in store.root.glob("objects/*/*/**/*") if path.is_file())
    return {
        "payload": [path for path in objects if path.name != "manifest.json" and path.stat().st_size],
        "manifest": [path for path in objects if path.name == "manifest.json"],
        "version": sorted(store.root.glob("names/*/*/v*.json")),
        "alias": sorted(store.root.glob("names/*/*/aliases/*")),
        "checkpoint": sorted(work.glob("checkpoints/step-*/*")),
        "log": sorted(work.glob("out/*.jsonl")),
        "note": sorted(work.glob("step*.json")),
    }


def mutated(path: Path, siblings: list[Path], rng: random.Random) -> tuple[str, bytes | None]:
    """A name for the change, and the new content; None where the file is removed."""
    content = path.read_bytes()
    if rng.random() < 0.1:
        return "remove", None
    for _ in range(50):
        change = rng.choice(CHANGES)
        try:
            new = rng.choice(siblings).read_bytes() if change is other else change(content, rng)
        except (ValueError, TypeError):
            continue  # it holds no JSON
        if new != content:
            return change.__name__, new
    return "remove", None


def says_the_same(kind: str, old: bytes, new: bytes | None) -> bool:
    """Whether a change makes no difference: white space, or what no seal is over (dates, seconds, versions)."""
    if new is None or kind in ("payload", "note"):
        return False
    if kind == "log":
        return new.startswith(old)  # what was logged after the checkpoint is cut off
    try:
        one, two = json.loads(old), json.loads(new)
    except ValueError:
        return False
    if one == two:
        return True
    is_manifest = kind == "manifest" and isinstance(two, dict) and one.get("seal") == two.get("seal")
    return is_manifest and all(one.get(field) == two.get(field) for field in RESULT)


class World:
    """The finished toy store, and beside its artifacts a step in progress with two checkpoints."""

    def __init__(self, folder: Path):
        self.store = ArtifactStore(folder / "store")
        if not (folder / "whole").exists():
            shutil.rmtree(self.store.root, ignore_errors=True)
            run_toy(self.store.root)
            (folder / "whole").touch()
        import torch

        self.work = self.store.root / "work/ppo" / ("e" * 64)
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "out").mkdir(parents=True)
        (self.work / "lock").touch()
        (self.work / "step.json").write_text(json.dumps({"name": "toy/ppo", "begun": 1.0, "inputs": []}))
        (self.work / "steps.json").write_text(json.dumps({"total": 9, "unit": "iterations"}))
        for step in (1, 2):
            logs = {}
            for name in ("metrics", "samples"):
                file = self.work / f"out/{name}.jsonl"
                with file.open("a") as out:
                    out.write(json.dumps({"step": step, "loss": 0.5, "text": "a\u2028b"}) + "\n")
                content = file.read_bytes()
                logs[f"out/{name}.jsonl"] = (len(content), _sha256(content))
            state = {"weights": torch.full((50,), float(step)), "nested": [1, (2, 3.5)], "step": step}
            save_checkpoint(self.work / "checkpoints", step, state, logs)
        self.files = kinds_of_files(self.store, self.work)


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def noticed(world: World, kind: str, path: Path) -> list[str]:
    """What is wrong about how a change is noticed; nothing where it is noticed before use, each in one line."""
    if kind in ("checkpoint", "log"):
        return _noticed_on_resume(world, kind, path)
    if kind == "note":  # nothing of it is used for a result
        from align.report.running import unfinished

        unfinished(world.store, ["toy"])
        find_garbage(world.store)
        return []
    faults = audit(world.store).faults
    wrong = [] if faults else ["verify does not notice"]
    wrong += ["a fault of several lines"] if any("\n" in fault for fault in faults) else []
    try:
        artifact = _use(world.store, kind, path)
        world.store.verify(artifact)
        wrong.append(f"{artifact.ref} was used")
    except StoreError as error:
        wrong += ["an error of several lines"] if "\n" in str(error) else []
    return wrong


def _noticed_on_resume(world: World, kind: str, path: Path) -> list[str]:
    folder = world.work / "checkpoints"
    damaged = int(path.parent.name.partition("-")[2]) if kind == "checkpoint" else 2
    if damaged == 1:
        shutil.rmtree(folder / "step-2")  # it would be taken, and the older one not be read
    aside = set_damaged_aside(folder)
    found = load_checkpoint(folder)
    wrong = [] if aside and all("\n" not in line for line in aside) else ["not noticed"]
    if found is not None and found[0] >= damaged:
        wrong.append(f"went on from {found[0]}")
    return wrong


def _use(store: ArtifactStore, kind: str, path: Path) -> Artifact:
    """The artifact as a run finds it that reads what was changed."""
    if kind in ("payload", "manifest"):
        parts = path.relative_to(store.root / "objects").parts
        artifact = store.get(parts[0], parts[1])
        if artifact is None:
            raise StoreError("gone")
        return artifact
    parts = path.relative_to(store.root / "names").parts
    return store.find(f"{parts[0]}/{parts[1]}:{path.stem if kind == 'version' else path.name}")


def run_mutation(number: int, world: World) -> dict[str, Any]:
    rng = random.Random(number)
    kind = rng.choice(list(world.files))
    path = rng.choice(world.files[kind])
    old = path.read_bytes()
    change, new = mutated(path, world.files[kind], rng)
    kept = world.work.with_name("kept")
    shutil.copytree(world.work, kept)
    try:
        if new is None:
            path.unlink()
        else:
            path.write_bytes(new)
        found = noticed(world, kind, path)
    except Exception as error:
        found = [f"{type(error).__name__}: {error}"]
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(world.work)
        kept.rename(world.work)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(old)
    removed_name = new is None and kind in ("version", "alias") and found == ["verify does not notice"]
    if says_the_same(kind, old, new) or removed_name:  # a name that is not there is asked for in vain
        found = [line for line in found if "Error" in line]
        change += ", which makes no difference"
    return {"kind": kind, "change": change, "file": path.name, "wrong": found}


# -- clean -------------------------------------------------------------------------------------------------------------


def run_clean(number: int, world: World) -> dict[str, Any]:
    """Read, tag, publish and make artifacts as a run does; nothing may be called damaged."""
    rng, store, wrong = random.Random(number), world.store, []
    try:
        name = rng.choice(store.names())
        artifact = store.find(name)
        store.verify(artifact)
        store.publish(name, artifact)
        store.tag(name, 0, rng.choice(["best", "blessed", "old"]))
        store.lineage(artifact)
        if rng.random() < 0.1:
            list(remove_garbage(store))
        if set_damaged_aside(world.work / "checkpoints"):
            wrong.append("a whole checkpoint was set aside")
        if rng.random() < 0.2:
            wrong += audit(store).faults
    except StoreError as error:
        wrong.append(str(error))
    return {"kind": "clean", "wrong": wrong}


# -- many processes ----------------------------------------------------------------------------------------------------


def make(store: ArtifactStore, key: str) -> Artifact:
    """An artifact as a step makes it, unless it is there."""
    with store.claim("data", key) as work:
        with store.in_use():
            artifact = store.get("data", key)
            if artifact is not None:
                store.publish("mine/data", artifact)
        if artifact is None:
            (work / "out").mkdir(exist_ok=True)
            (work / "out/rows.txt").write_text(key * 20)
            artifact = store.commit("data", key, work / "out", {"kind": "documents", "inputs": {}, "metrics": {}})
            store.publish("mine/data", artifact)
    return artifact


def _publish(root: Path, who: int, count: int) -> None:
    """Publish what this one has not acknowledged yet; a line in a file of its own is the acknowledgement."""
    store, acks = ArtifactStore(root), root.parent / f"acks-{who}"
    done = len(acks.read_text().splitlines()) if acks.exists() else 0
    for number in range(done, count):
        artifact = make(store, digest_of([who, number]))
        with acks.open("a") as file:
            file.write(artifact.key + "\n")


def _read(root: Path) -> None:
    store = ArtifactStore(root)
    while True:
        for name in store.names():
            for number in list(store.versions(name))[-5:]:
                store.verify(store.find(f"{name}:v{number}"))


def run_publishers(number: int, world: World, publishers: int = 8, each: int = 125, kills: int = 200) -> dict[str, Any]:  # noqa: C901
    rng, wrong = random.Random(number), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        ArtifactStore(root)
        readers = [FORK.Process(target=_read, args=(root,)) for _ in range(4)]
        running: dict[int, Any] = {}
        done: set[int] = set()
        killed = 0
        make(ArtifactStore(root), digest_of("first"))
        for reader in readers:
            reader.start()
        while len(done) < publishers:
            for who in range(publishers):
                process = running.get(who)
                if process is not None and process.exitcode is not None:
                    if process.exitcode == 0:
                        done.add(who)
                    elif process.exitcode != -signal.SIGKILL:
                        wrong.append(f"a publisher ended with {process.exitcode}")
                        done.add(who)
                    running.pop(who)
                if who not in running and who not in done:
                    running[who] = FORK.Process(target=_publish, args=(root, who, each))
                    running[who].start()
            if killed < kills and running:
                time.sleep(rng.uniform(0, 0.02))
                victim = rng.choice(list(running.values()))
                if victim.exitcode is None:
                    os.kill(victim.pid, signal.SIGKILL)
                    killed += 1
            else:
                time.sleep(0.01)
        for reader in readers:
            wrong += [f"a reader ended with {reader.exitcode}"] if reader.exitcode is not None else []
            reader.terminate()
            reader.join()
        store = ArtifactStore(root)
        acknowledged = {key for file in root.parent.glob("acks-*") for key in file.read_text().split()}
        versions = store.versions("mine/data")
        lost = acknowledged - {record["key"] for record in versions.values()}
        wrong += [f"{len(lost)} acknowledged artifacts lost"] if lost else []
        wrong += ["versions with gaps or twice"] if list(versions) != list(range(len(versions))) else []
        wrong += [f"{len(versions)} versions"] if len(versions) != publishers * each + 1 else []
        wrong += audit(store).faults
        count = len(acknowledged)
    return {"kind": "publishers", "acknowledged": count, "kills": killed, "wrong": wrong}


def _remove(root: Path) -> None:
    store = ArtifactStore(root)
    while True:
        list(remove_garbage(store))


def run_garbage(number: int, world: World, rounds: int = 100) -> dict[str, Any]:
    """Artifacts that are old and have no name are named or removed: whichever is first; a name leads to no gap."""
    wrong: list[str] = []
    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        store = ArtifactStore(root)
        make(store, digest_of("first"))
        others = [FORK.Process(target=_remove, args=(root,)), FORK.Process(target=_read, args=(root,))]
        for process in others:
            process.start()
        for turn in range(rounds):
            key = digest_of(["old", turn])
            with store.claim("data", key) as work:
                (work / "out").mkdir()
                (work / "out/rows.txt").write_text(key)
                artifact = store.commit("data", key, work / "out", {"kind": "documents", "inputs": {}, "metrics": {}})
                os.utime(artifact.path / "rows.txt", (0, 0))
                os.utime(artifact.path / "manifest.json", (0, 0))
                os.utime(artifact.path, (0, 0))
            time.sleep(rng.uniform(0, 0.01))
            make(store, key)
        for process in others:
            wrong += [f"a process ended with {process.exitcode}"] if process.exitcode is not None else []
            process.terminate()
            process.join()
        wrong += audit(store).faults
        count = len(store.versions("mine/data"))
        wrong += [f"{count} versions for {rounds + 1}"] if count != rounds + 1 else []
    return {"kind": "garbage", "rounds": rounds, "wrong": wrong}


RUN: dict[str, Callable[[int, World], dict[str, Any]]] = {
    "mutations": run_mutation,
    "clean": run_clean,
    "publishers": run_publishers,
    "garbage": run_garbage,
}


@contextlib.contextmanager
def prepared() -> Iterator[Callable[[str, int], dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        world = World(Path(folder))
        yield lambda part, number: RUN[part](number, world)


if __name__ == "__main__":
    sys.exit(run_trials(__doc__, COUNTS, 10.0, prepared))
