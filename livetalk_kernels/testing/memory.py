"""How much memory a piece of work takes, as PyTorch's allocator on the CPU sees it."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes allocated at a time by ``work``, its result included."""
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
