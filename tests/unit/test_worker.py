"""What every step's process does before its stage runs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from align.runtime.memory import reuse_freed_memory
for set_up in (lambda: None, reuse_freed_memory):
    set_up()
    for _ in range(12):  # an aligned block needs a gap a little larger than itself: the first few make it
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


GAPS = """
import psutil, sys
import torch
from align.runtime.memory import give_back_freed_memory, reuse_freed_memory
reuse_freed_memory()
pieces = [torch.ones(2**20) for _ in range(int(sys.argv[1]))]  # 4 MiB each, every second of which is kept
kept = pieces[::2]
del pieces
before = psutil.Process().memory_info().rss
give_back_freed_memory()
print((before - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.libc_ver() < ("glibc", "2.35"),
    reason="older C libraries, and others, give out 64 MiB afresh whatever is set",
)
def test_freed_memory_is_used_again_without_page_faults():
    """Ten times 64 MiB: all ten new from the kernel, or all but one the memory of the one before."""
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, out.stdout.split())
    assert before > 4 * after


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.33"), reason="other C libraries do not say what is free")
@pytest.mark.parametrize(("pieces", "least", "most"), [(200, 350, 410), (40, 0, 1)])
def test_gaps_between_tensors_go_back_to_the_kernel_where_they_are_large(pieces, least, most):
    out = subprocess.run([sys.executable, "-c", GAPS, str(pieces)], capture_output=True, text=True, check=True)
    assert least <= int(out.stdout) <= most
