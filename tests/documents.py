"""The blocks of a Markdown page: commands, files, Python and output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a block may need that a test has not: `<!-- needs: gpu -->` on the line above it.
NEEDS = (
    "real-model",
    "network",
    "gpu",
    "wandb-key",
    "slurm",
    "server",
    "peers",
    "data",
    "hours",
    "install",
    "fragment",
    "own-test",
)
_BLOCK = re.compile(
    r"^(?:[ \t]*<!-- needs: (?P<needs>[\w-]+) -->\n)?"
    r"(?P<indent>[ \t]*)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block of code."""

    language: str  # sh, python, yaml, json, text, ...
    title: str | None  # the file that it is
    needs: str | None  # of NEEDS
    text: str
    line: int  # where it begins in its page


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, from top to bottom."""
    markdown = page.read_text()
    found = []
    for match in _BLOCK.finditer(markdown):
        indent = match["indent"]
        text = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        line = markdown.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], match["title"], match["needs"], text, line))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block of language sh, each on one line, without comments."""
    lines = []
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.sub(r"\s+#\s.*$|^#.*$", "", line).strip()
        if command:
            lines.append(" ".join(command.split()) if "'" not in command and '"' not in command else command)
    return lines
