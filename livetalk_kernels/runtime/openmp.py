"""Controls OpenMP's threads, with which torch computes on a CPU."""

import ctypes
from functools import cache
from typing import Any

_SOFT = 1  # omp_pause_soft of OpenMP 5.0


def release_helpers() -> None:
    """End the helper threads of the calling thread; its next parallel loop starts new ones.

    Every thread that has run a parallel loop keeps its helpers. While the helpers of all threads
    together outnumber the cores, GNU's OpenMP puts them to sleep at the end of every loop instead
    of letting them spin briefly, and short loops take twice as long. So a thread releases them
    before another one computes. With another OpenMP this does nothing.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@cache
def _pause() -> Any:
    """Return GNU's ``omp_pause_resource_all`` if torch has loaded it; else None."""
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, "__kmpc_fork_call"):  # LLVM's and Intel's, where it affects all threads
        return None
    return getattr(loaded, "omp_pause_resource_all", None)
