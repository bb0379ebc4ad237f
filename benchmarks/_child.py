"""What every side of a benchmark's race does: note its memory, and answer in JSON lines (see _peer.py)."""

from __future__ import annotations

import json
import os
import time
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


class Clock:
    """Measures the time since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Return `seconds`, and `cpu_seconds` of all threads, which other work on the machine disturbs less."""
        wall, cpu = self._begun
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
