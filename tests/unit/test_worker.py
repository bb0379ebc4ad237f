"""What every step's process does before its stage runs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from align.worker import reuse_freed_memory
if sys.argv[1] == "reuse":
    reuse_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    out = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(out.stdout)


@pytest.mark.skipif(
    platform.libc_ver() < ("glibc", "2.35"),
    reason="older C libraries, and others, give out 64 MiB afresh whatever is set",
)
def test_freed_memory_is_used_again_without_page_faults():
    """Ten times 64 MiB: all ten new from the kernel, or all but one the memory of the one before."""
    assert page_faults("not") > 4 * page_faults("reuse")
