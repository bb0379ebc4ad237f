"""A file system that refuses: one line with the file and the reason, nothing half made, the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import align
from watching import watching

from align.store.artifacts import ArtifactStore
from align.store.audit import audit

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Changes:
    """How many changes a folder has seen."""

    count = 0


@contextlib.contextmanager
def refused(folder: Path, number: int) -> Iterator[Changes]:
    """Count what changes a folder, and refuse the change of that number, as a full disk does."""
    seen = Changes()

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        if not str(arguments[0]).startswith(str(folder)):
            return
        seen.count += 1
        if seen.count == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    with watching(refuse):
        yield seen


@pytest.fixture
def command(tmp_path: Path) -> list[object]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "What is {n}?", "completion": "A number."}}\n' for n in range(40)))
    return ["data", f"source=path:{rows}", "record=demonstrations", f"store={tmp_path / 'store'}", "tracker=none"]


def make(store: ArtifactStore) -> str:
    """What a step does to a store; the artifact's seal."""
    with store.claim("data", "a" * 64) as work:
        (work / "out").mkdir(exist_ok=True)
        (work / "out/rows.txt").write_text("rows")
        with store.in_use():
            artifact = store.get("data", "a" * 64)
        if artifact is None:
            artifact = store.commit("data", "a" * 64, work / "out", {"kind": "documents", "inputs": {}, "metrics": {}})
        store.publish("mine/data", artifact)
    return artifact.seal


def test_a_store_is_whole_after_a_full_disk_at_any_write(tmp_path):
    with refused(tmp_path / "whole", 0) as seen:
        seal = make(ArtifactStore(tmp_path / "whole"))
    assert seen.count > 15
    for number in range(1, seen.count + 1):
        store = ArtifactStore(tmp_path / f"store-{number}")
        with refused(store.root, number), contextlib.suppress(OSError):  # a folder that is there already needs no write
            make(store)
        assert audit(store).faults == []
        assert make(store) == seal
        found = audit(store)
        assert (found.faults, found.artifacts, found.versions, found.aliases) == ([], 1, 1, 1)
        left = [path for path in store.root.rglob("*") if path.name.startswith(".") or "work" in path.parts]
        assert left == [], number


@pytest.mark.slow  # two commands for each write
def test_a_full_disk_at_any_write_is_one_line_and_the_same_command_goes_on(command, tmp_path):
    place = tmp_path / "store"
    with refused(place, 0) as seen:
        align(*command)
    assert seen.count > 15
    whole = {artifact.key: artifact.seal for artifact in ArtifactStore(place).objects()}
    for number in range(1, seen.count + 1):
        store = tmp_path / f"store-{number}"
        again = [f"store={store}" if word == f"store={place}" else word for word in command]
        with refused(store, number):
            done = align(*again, check=None)
        if done.returncode == 0:
            assert "report" in done.stderr  # what is no result may be left out, and that is said
        else:
            assert done.returncode == 3, (number, done.stderr)
            line = done.stderr.strip().splitlines()[-1]
            assert line.startswith(f"error: {store}"), (number, done.stderr)
            assert "No space left on device; free some space" in line, (number, line)
        align("artifacts", "verify", "--store", store, check=None if not store.exists() else 0)
        align(*again)
        align("artifacts", "verify", "--store", store)
        assert {artifact.key: artifact.seal for artifact in ArtifactStore(store).objects()} == whole
        left = [path for path in store.rglob("*") if path.name.startswith(".") or "work" in path.parts]
        assert left == [], number


def test_a_run_that_finds_all_made_writes_nothing(command, tmp_path):
    align(*command)
    with refused(tmp_path / "store", 1):
        assert "0 run, 1 cached" in align(*command).stdout


def test_what_a_process_leaves_that_was_killed_right_after_its_commit_goes(command, tmp_path):
    align(*command)
    store = ArtifactStore(tmp_path / "store")
    (artifact,) = store.objects()
    left = store.root / "work/data" / artifact.key
    (left / "checkpoints").mkdir(parents=True)
    (left / "lock").touch()
    assert "0 run, 1 cached" in align(*command).stdout
    assert not (store.root / "work").exists()


def test_what_a_process_wrote_that_was_killed_before_its_commit_is_not_in_the_artifact(command, tmp_path):
    """Of a stage without checkpoints: its log would hold every line twice."""
    align(*command)
    store = ArtifactStore(tmp_path / "store")
    (artifact,) = store.objects()
    half = store.root / "work/data" / artifact.key / "out"
    half.parent.mkdir(parents=True)
    artifact.path.rename(half)
    (half / "metrics.jsonl").write_text('{"step": 0}\n')
    align(*command)
    assert store.get("data", artifact.key).seal == artifact.seal


def test_a_step_that_is_refused_for_a_damaged_input_leaves_nothing(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "Ada sat on the mat and read."}\n' * 3)
    place = [f"store={tmp_path / 'store'}", "tracker=none"]
    align("data", f"source=path:{tmp_path / 'text.jsonl'}", "record=documents", "name=mine/text", *place)
    store = ArtifactStore(tmp_path / "store")
    (artifact,) = store.objects()
    file = next(path for path in sorted(artifact.path.rglob("*")) if path.suffix == ".parquet")
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    done = align("tokenizer", "inputs.data=mine/text", "vocab_size=300", *place, check=3)
    assert "has sha256" in done.stderr
    assert not (store.root / "work").exists()
