"""Show what the terminal shows, from a real tiny run.

    python benchmarks/console.py --docs docs/reference/console.md

Runs the quickstart at reduced size in a temporary folder, then a sweep, then the commands that inspect a store, all at
80 columns. Takes about five minutes on two cores. Fails if an output is wider than 80 columns or longer than a screen.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

COLUMNS = 80
LINES = 30
SMALL = " ".join(
    [
        "pipeline=quickstart tracker=none steps.text.train_rows=1000 steps.demonstrations.train_rows=400",
        "steps.pretrain.num_steps=40 steps.compare.num_prompts=100 steps.compare.num_validation_prompts=50",
        "steps.ppo.num_iterations=3 steps.ppo.rollout_batch_size=32 steps.ppo.minibatch_size=32",
        *(
            f"steps.evaluate_{name}.num_prompts=40 steps.evaluate_{name}.inputs.text=null "
            f"steps.evaluate_{name}.max_new_tokens=16 steps.evaluate_{name}.steering=[]"
            for name in ("base", "sft", "ppo")
        ),
    ]
)


class Shown(NamedTuple):
    title: str
    text: str  # shown before the output
    command: str
    output: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the page here; default: print it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shown = everything(Path(folder))
    if options.docs is None:
        print(page_of(shown))
    else:
        options.docs.write_text(page_of(shown), encoding="utf-8")
    for title, _, _, output in shown:
        lines = output.strip("\n").splitlines()
        widest = max((len(line.rstrip()) for line in lines), default=0)
        if not lines or widest > COLUMNS or len(lines) > LINES:
            raise SystemExit(f"{title}: {len(lines)} lines of up to {widest} characters")


def everything(folder: Path) -> list[Shown]:
    """Run each command in `folder` and keep what it prints."""
    run = f"align run {SMALL}"
    live, ended = in_terminal(run, folder)
    swept = printed(f"{run} steps.ppo.kl_coef=0.05,0.5 -m", folder)
    run = "align run pipeline=quickstart ..."
    return [
        Shown("While PPO runs", "The last lines of the terminal. They are redrawn in place.", run, live),
        Shown("The end of a run", "The verdict comes first, then one table. The report has the rest.", run, ended),
        Shown(
            "The end of a sweep",
            "`align sweep show` prints the same table again.",
            f"{run} steps.ppo.kl_coef=0.05,0.5 -m",
            swept,
        ),
        Shown(
            "A run without an evaluation",
            "The command prints the metrics of its last step.",
            "align sft inputs.model=quickstart/pretrain ...",
            printed(
                "align sft inputs.model=quickstart/pretrain inputs.data=quickstart/demonstrations num_epochs=1 "
                "precision=fp32 tracker=none name=mine/sft",
                folder,
            ),
        ),
        Shown(
            "A plan",
            "Each step is cached or will run. The reasons follow the table.",
            "align plan pipeline=quickstart ... steps.ppo.kl_coef=0.2",
            printed(f"align plan {SMALL} steps.ppo.kl_coef=0.2", folder),
        ),
        Shown(
            "The list of a store",
            "Every version, with its main figures.",
            "align artifacts ls",
            printed("align artifacts ls", folder),
        ),
        Shown(
            "A diff",
            "Knobs, inputs and metrics that differ between two artifacts.",
            "align artifacts diff quickstart/ppo:v0 quickstart/ppo:v1",
            printed("align artifacts diff quickstart/ppo:v0 quickstart/ppo:v1", folder),
        ),
    ]


def command_line(command: str) -> list[str]:
    return [sys.executable, "-m", *shlex.split(command)]


def environment() -> dict[str, str]:
    here = Path(__file__).resolve().parent.parent
    return os.environ | {"COLUMNS": str(COLUMNS), "PYTHONPATH": str(here), "NO_COLOR": "1", "TERM": "xterm"}


def printed(command: str, folder: Path) -> str:
    """What a command prints on standard output."""
    done = subprocess.run(
        command_line(command), cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def in_terminal(command: str, folder: Path) -> tuple[str, str]:
    """(PPO's last live lines, the standard output) of a run in a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command_line(command), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        assert process.stdout is not None
        ended = process.stdout.read()
    os.close(ours)
    if process.returncode:
        raise SystemExit(written.decode())
    frames = re.findall(r"  \S+/ppo: [^\r\n]* iterations[^\x1b]*", written.decode().replace("\r", ""))
    return (frames[-1] if frames else ""), ended


def page_of(shown: list[Shown]) -> str:
    """The Markdown page."""
    parts = [
        "# What the terminal shows",
        "",
        "These are the outputs of real commands at 80 columns. They run the quickstart at a reduced size (`SMALL` in",
        "the script), which is far too small to learn much. This command writes the page:",
        "",
        "```text",
        "python benchmarks/console.py --docs docs/reference/console.md",
        "```",
    ]
    for title, text, command, output in shown:
        lines = [line.rstrip() for line in output.strip("\n").splitlines()]
        parts += ["", f"## {title}", "", *([text, ""] if text else []), "```text", f"$ {command}", *lines, "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
