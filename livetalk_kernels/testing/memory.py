"""Measures memory in use: by a piece of work in PyTorch's allocator, and by this process."""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """Measure the peak of bytes allocated during ``work``, including its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = work()
    del result
    events = record.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, count in memory:
        held += count
        peak = max(peak, held)
    return peak


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap_bytes() -> int:
    """Count bytes allocated and not freed: glibc's heaps and Python's small blocks.

    Unlike resident memory it excludes gaps between blocks, which grow for minutes if threads are
    preempted and interleave differently. Needs glibc 2.33.
    """
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd) + _BLOCK * sys.getallocatedblocks()


_BLOCK = 64  # bytes: average block of Python's own allocator, at most 512
