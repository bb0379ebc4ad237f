"""Settings of glibc's heap: keep freed memory for reuse, or give it back to the kernel."""

from __future__ import annotations

import contextlib
import ctypes

# Two parameters of mallopt(3), and the value to set, in bytes.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _MOST = -3, -1, 2**30
# Bytes of free gaps. Below this, giving them back is not worth the page faults that follow.
_WORTH = 2**28


class _Heap(ctypes.Structure):
    """The `struct mallinfo2` of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


def reuse_freed_memory() -> None:
    """Let glibc keep large freed blocks for later requests. With other C libraries, do nothing.

    By default, glibc takes new memory from the kernel for each tensor above 32 MiB, with a page
    fault for every 4 KiB. It also gives free memory at the end of the heap back to the kernel. If
    one of the two limits is set, glibc stops adapting both. So the second one is set only if the
    first was accepted.
    """
    with contextlib.suppress(AttributeError):  # other C libraries have no mallopt
        libc = ctypes.CDLL(None)
        # Before glibc 2.35 the largest value is 2**25.
        if libc.mallopt(_MMAP_THRESHOLD, _MOST) or libc.mallopt(_MMAP_THRESHOLD, 2**25):
            libc.mallopt(_TRIM_THRESHOLD, _MOST)


def give_back_freed_memory() -> None:
    """Give large free gaps in the heap back to the kernel. Without glibc 2.33 or later, do nothing.

    Call it between phases of work with tensors of different sizes, because the gaps of one phase do
    not fit the tensors of the next.
    """
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Heap
        if libc.mallinfo2().fordblks > _WORTH:
            libc.malloc_trim(0)
