"""What every side of a benchmark's race does: note its memory, and answer in JSON lines (see _peer.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ANSWERS = os.fdopen(int(os.environ.get("ANSWERS_FD", "1")), "w")


def rss(field: str) -> int:
    """Return resident memory in bytes: VmRSS is what it is now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def answer(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), file=_ANSWERS, flush=True)
