"""OpenMP's threads, by which torch computes on a CPU."""

import ctypes
from functools import cache
from typing import Any

_SOFT = 1  # omp_pause_soft of OpenMP 5.0


def release_helpers() -> None:
    """End the helpers of the calling thread; its next parallel loop starts new ones.

    Each thread that has run a parallel loop keeps its helpers. While those of all threads together
    are more than the cores, GNU's OpenMP puts them to sleep at the end of every loop, instead of
    letting them spin for a moment, and short loops take twice as long. So a thread lets them go
    before another one computes. With another OpenMP nothing is done.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@cache
def _pause() -> Any:
    """GNU's ``omp_pause_resource_all``, where torch has loaded it; None elsewhere."""
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, "__kmpc_fork_call"):  # LLVM's and Intel's, where it is for all threads
        return None
    return getattr(loaded, "omp_pause_resource_all", None)
