"""How many cores this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Those its affinity allows, as in a container or a job of a cluster; all where a system does not say."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(allowed(0)) if allowed else os.cpu_count() or 1
