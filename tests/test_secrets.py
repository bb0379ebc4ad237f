"""Keys stay where the user put them: in no file, no line of output, no command line of any process."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import CONF

KEYS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "JUDGE_KEY")


def hexadecimal() -> str:
    return secrets.token_hex(20)  # W&B takes keys of 40 characters alone


class CommandLines(threading.Thread):
    """The command lines of all processes while it runs that name one of some words."""

    def __init__(self, words: list[str]):
        super().__init__(daemon=True)
        self._words, self._over = [word.encode() for word in words], threading.Event()
        self.read: set[int] = set()
        self.found: list[bytes] = []

    def run(self) -> None:
        while not self._over.wait(0.02):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = file.read_bytes()
                except OSError:
                    continue
                self.read.add(int(file.parent.name))
                self.found += [line for word in self._words if word in line]

    def end(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="this system has no /proc")
def test_no_key_is_written_printed_or_passed_on_a_command_line(finished: Path, tmp_path: Path) -> None:
    """A sweep by joblib, each member of two processes, tracked by W&B offline; then a failure with `debug=true`."""
    store, home = Path(shutil.copytree(finished, tmp_path / "artifacts")), tmp_path / "home"
    shutil.rmtree(store / "objects/reward")
    home.mkdir()
    given = {name: hexadecimal() for name in KEYS}
    of_netrc, of_url, of_proxy = hexadecimal(), hexadecimal(), hexadecimal()
    netrc = home / ".netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {of_netrc}\n")
    netrc.chmod(0o600)
    words = [*given.values(), of_netrc, of_url, of_proxy]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {
        **kept,
        **given,
        "HOME": str(home),
        "WANDB_MODE": "offline",
        "WANDB_BASE_URL": f"http://user:{of_url}@127.0.0.1:9",
        "HTTPS_PROXY": f"http://user:{of_proxy}@127.0.0.1:9",
    }
    align = [sys.executable, "-m", "align", "run", "pipeline=toy", "--config-dir", str(CONF), f"store={store}"]
    sweep = ["step=reward", "steps.reward.seed=1,2", "launcher=joblib", "hardware=two_processes", "tracker=wandb", "-m"]
    fails = ["step=reward", "steps.reward.learning_rate=1e30", "steps.reward.max_grad_norm=1e30", "debug=true"]
    watch, printed = CommandLines(words), ""
    watch.start()
    for command, code in (([*align, *sweep], 0), ([*align, *fails], 4)):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        printed += done.stdout + done.stderr
    watch.end()
    assert len(watch.read) > 8  # two members of three processes each, their parents, W&B's
    assert watch.found == []
    assert [word for word in words if word in printed] == []
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != netrc]
    assert list((store / "wandb").glob("offline-run-*/*.wandb"))
    assert [str(path) for path in files for word in words if word.encode() in path.read_bytes()] == []


def test_the_watch_sees_a_key_on_a_command_line() -> None:
    key = hexadecimal()
    watch = CommandLines([key])
    watch.start()
    subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)", key], check=True)
    watch.end()
    assert watch.found
