"""The versions of the code and of the packages that a result is made with."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from align.errors import PACKAGE

PACKAGES = (
    *(
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "accelerate",
        "tokenizers",
        "safetensors",
        "numpy",
    ),
    "lm_eval",
)


@cache
def packages() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def code_version() -> dict[str, Any]:
    """Return the commit of the checkout and whether it has changes, or the installed version."""
    here = PACKAGE
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return {
            "commit": commit,
            "dirty": bool(_git(here, "status", "--porcelain", "--", str(here))),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "version": _installed_version(), "dirty": False}


def version_line() -> str:
    """Return a line such as `align 0.1.0`, with the commit of the checkout and "and changes"."""
    code = code_version()
    commit = f", commit {code['commit'][:12]}" if code["commit"] else ""
    return f"align {_installed_version()}{commit}{' and changes' if code['dirty'] else ''}"


def _installed_version() -> str:
    """Return the version of the installed distribution; "(not installed)" for a bare checkout."""
    try:
        return metadata.version("align-rlhf")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
    ).stdout.strip()
