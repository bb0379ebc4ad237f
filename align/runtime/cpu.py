"""The number of CPU cores that this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of cores in this process's affinity; all cores if the system has none.

    A container or a cluster job may restrict the affinity.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed else os.cpu_count() or 1
