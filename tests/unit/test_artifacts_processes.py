"""Several processes at one store: nothing is lost, made twice or left locked."""

import os
import signal
import subprocess
import sys
import time

from align.store.artifacts import ArtifactStore

_START = """
import os, sys, time
from pathlib import Path
from align.store.artifacts import ArtifactStore
store = ArtifactStore(sys.argv[1])
def make(key, text):
    with store.claim("data", key, "waiting") as work:
        artifact = store.get("data", key)
        if artifact is not None:
            print("found", flush=True)
            return artifact
        (work / "out").mkdir(exist_ok=True)
        (work / "out" / "a.txt").write_text(text)
        print("making", flush=True)
        hold(work)
        return store.commit("data", key, work / "out", {"kind": "documents", "inputs": {}, "metrics": {}})
def hold(work): pass
"""
_PUBLISH = """
me = int(sys.argv[2])
made = [make(f"{me:032x}{i:032x}", f"{me} {i}") for i in range(20)]
Path(sys.argv[1], f"ready{me}").touch()
while not Path(sys.argv[1], "go").exists(): time.sleep(0.001)
for artifact in made: store.publish("mine/data", artifact)
"""
_HOLD = """
def hold(work):
    (work / "checkpoint").write_text("half")
    while not Path(sys.argv[1], "go").exists(): time.sleep(0.005)
"""


def start(root, code, *arguments):
    command = [sys.executable, "-c", _START + code, str(root), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_four_processes_publish_eighty_versions_and_none_is_lost(tmp_path):
    running = [start(tmp_path, _PUBLISH, me) for me in range(4)]
    until(lambda: len(list(tmp_path.glob("ready*"))) == 4)
    (tmp_path / "go").touch()
    for process in running:
        assert process.wait(60) == 0, process.stderr.read()
    store = ArtifactStore(tmp_path)
    versions = store.versions("mine/data")
    assert list(versions) == list(range(80))
    assert {v["key"] for v in versions.values()} == {f"{me:032x}{i:032x}" for me in range(4) for i in range(20)}
    for artifact in store.objects():
        store.verify(artifact)
    assert store.aliases("mine/data")["latest"] in range(80)
    assert not [p for p in (tmp_path / "names").rglob("*") if p.name.startswith(".")]


_CLAIM = """
for i in range(100):
    with store.claim("data", "a") as work:
        (work / "here").touch(exist_ok=False)  # another would say so
        (work / "here").unlink()
    if i % 4 == 0:
        make(f"{i:064x}", "the same")
"""


def test_a_folder_that_goes_while_another_claims_it_is_made_again(tmp_path):
    """Every claim that leaves nothing behind removes its work folder, under the hands of those who wait for it."""
    running = [start(tmp_path, _CLAIM) for _ in range(4)]
    for process in running:
        assert process.wait(60) == 0, process.stderr.read()
    assert len(list(tmp_path.glob("objects/data/*"))) == 25
    assert not list(tmp_path.glob("work/*/*"))


def test_a_second_claimant_waits_and_finds_it_made(tmp_path):
    key = "a" * 64
    first = start(tmp_path, _HOLD + f"make({key!r}, 'first')")
    assert first.stdout.readline() == "making\n"
    second = start(tmp_path, f"make({key!r}, 'second')")
    assert second.stderr.readline() == "waiting\n"
    assert second.poll() is None
    (tmp_path / "go").touch()
    assert first.wait(30) == second.wait(30) == 0
    assert second.stdout.read() == "found\n"
    artifact = ArtifactStore(tmp_path).get("data", key)
    assert (artifact.path / "a.txt").read_text() == "first"
    assert not (tmp_path / "work" / "data" / key).exists()


def test_a_killed_claimant_frees_the_lock_and_leaves_its_work(tmp_path):
    key = "a" * 64
    first = start(tmp_path, _HOLD + f"make({key!r}, 'first')")
    assert first.stdout.readline() == "making\n"
    until((tmp_path / "work/data" / key / "checkpoint").exists)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    store = ArtifactStore(tmp_path)
    assert store.get("data", key) is None
    second = start(tmp_path, f"make({key!r}, 'second')\nprint(list(store.versions('mine/data')))")
    out, err = second.communicate(timeout=30)
    assert (second.returncode, out, err) == (0, "making\n[]\n", "")
    assert (store.get("data", key).path / "a.txt").read_text() == "second"


def test_what_a_killed_claimant_left_is_there_for_the_next(tmp_path):
    key = "a" * 64
    first = start(tmp_path, _HOLD + f"make({key!r}, 'first')")
    assert first.stdout.readline() == "making\n"
    until((tmp_path / "work/data" / key / "checkpoint").exists)
    first.kill()
    first.wait(30)
    with ArtifactStore(tmp_path).claim("data", key) as work:
        assert sorted(path.name for path in work.iterdir()) == ["checkpoint", "lock", "out"]
        assert (work / "checkpoint").read_text() == "half"
