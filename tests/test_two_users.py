"""A store that two users share: what each may read, write and go on with is what its umask says."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CONF

ADA, BEN, GROUP = 64001, 64002, 64000
ROOT = Path(__file__).parent.parent
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), *site.getsitepackages()]),
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user"),
]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that both can reach; pytest's own are for their owner alone."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


def python_for_all() -> str:
    """A Python of this version that another user may run: this one, or the system's with the packages of this one."""
    for python in (sys.executable, "/usr/bin/python3"):
        code = f"import sys, torch; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
        with contextlib.suppress(OSError):
            as_ada = {"user": ADA, "group": GROUP, "extra_groups": []}
            if subprocess.run([python, "-c", code], env=ENV, check=False, **as_ada).returncode == 0:
                return python
    pytest.skip("another user may not run this Python")


@pytest.fixture
def start(place: Path) -> Start:
    """A function that starts an align command as a user, with an umask."""

    def started(user: int, umask: int, *words: object) -> subprocess.Popen[str]:
        home = place / f"home-{user}"
        if not home.exists():
            home.mkdir()
            os.chown(home, user, GROUP)
        return subprocess.Popen(
            [python, "-m", "align", *map(str, words)],
            user=user,
            group=GROUP,
            extra_groups=[],
            umask=umask,
            cwd=home,
            env={**ENV, "HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    python = python_for_all()
    return started


def shared(finished: Path, place: Path, mode: int) -> list[object]:
    """The command on a copy of the finished store: Ada's, for her group as `mode` says."""
    store = place / "share" / "store"
    shutil.copytree(finished, store)
    for path in (store.parent, *store.parent.rglob("*")):
        os.chown(path, ADA, GROUP)
        path.chmod(mode | 0o2000 if path.is_dir() else mode & 0o666)
    return ["run", "pipeline=toy", "--config-dir", CONF, f"store={store}", "tracker=none"]


def test_a_colleague_goes_on_with_a_step_and_shares_what_is_there(finished: Path, place: Path, start: Start) -> None:
    command = shared(finished, place, 0o775)
    store = place / "share" / "store"
    more = ("step=ppo", "steps.ppo.num_iterations=40", "hardware.checkpoint_seconds=0")
    process = start(ADA, 0o002, *command, *more)
    while not list(store.glob("work/ppo/*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(BEN, 0o002, *command, *more)
    _, told = process.communicate(timeout=120)
    assert (process.returncode, "going on from" in told) == (0, True), told
    process = start(ADA, 0o002, *command, *more)
    _, told = process.communicate(timeout=120)
    assert (process.returncode, "toy/ppo  cached" in told) == (0, True), told


def test_who_may_only_read_runs_what_is_cached_and_is_told_what_he_may_not(
    finished: Path, place: Path, start: Start
) -> None:
    command = shared(finished, place, 0o755)
    process = start(BEN, 0o022, *command)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    for words in ([*command, "step=ppo", "steps.ppo.kl_coef=0.3"], ["artifacts", "gc", "--yes", *_at(place)]):
        process = start(BEN, 0o022, *words)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 3, told
        line = told.strip().splitlines()[-1]
        assert line.startswith(f"error: {place}")
        assert "Permission denied; change its rights" in line
    process = start(BEN, 0o022, "artifacts", "verify", *_at(place))
    assert process.communicate(timeout=120) == (None, "")
    assert process.returncode == 0


def test_who_may_not_read_is_told_so(finished: Path, place: Path, start: Start) -> None:
    command = shared(finished, place, 0o700)
    (place / "share").chmod(0o755)
    for words in (command, ["artifacts", "ls", *_at(place)]):
        process = start(BEN, 0o022, *words)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 3, told
        assert "Permission denied; change its rights" in told.strip().splitlines()[-1]


def _at(place: Path) -> list[object]:
    return ["--store", place / "share" / "store"]
