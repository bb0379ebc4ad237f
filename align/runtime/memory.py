"""The process's own heap: what glibc keeps of freed memory, and when it gives that back to the kernel."""

from __future__ import annotations

import contextlib
import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _MOST = -3, -1, 2**30  # of mallopt(3)
_WORTH = 2**28  # bytes of gaps below which giving them back is not worth the page faults that follow


class _Heap(ctypes.Structure):
    """As `struct mallinfo2` of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def reuse_freed_memory() -> None:
    """Let glibc keep large blocks that are freed for the next that are asked for; elsewhere nothing is done.

    By default a tensor above 32 MiB is always memory fresh from the kernel, a page fault for every 4 KiB of it, and
    what is free at the end of the heap goes back. To set one limit stops glibc from adapting both, hence the order.
    """
    with contextlib.suppress(AttributeError):  # other C libraries have no mallopt
        libc = ctypes.CDLL(None)
        if libc.mallopt(_MMAP_THRESHOLD, _MOST) or libc.mallopt(_MMAP_THRESHOLD, 2**25):  # the most before glibc 2.35
            libc.mallopt(_TRIM_THRESHOLD, _MOST)


def give_back_freed_memory() -> None:
    """Give the kernel the gaps in the heap, where they are large; elsewhere than in glibc 2.33 and later, nothing.

    Call it between stretches of work whose tensors are of other sizes: the gaps that one leaves do not fit the next.
    """
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Heap
        if libc.mallinfo2().fordblks > _WORTH:
            libc.malloc_trim(0)
