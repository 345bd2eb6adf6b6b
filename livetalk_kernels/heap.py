"""Controls freed memory: kept, so that later calls don't pay its page faults again, or returned.

Every call allocates its outputs. Depending on what was freed before, glibc returns large blocks to
the system or keeps them; if returned, the next call waits for the system to zero the same pages.
That costs several times a fused op's own time and hides in its measurement. Memory freed while
loading is different: it is as large as the model, and is never reused.
"""

import ctypes
import platform

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX, M_MXFAST = -1, -3, -4, -8, 1

# Each aligned block leaves a small remainder in front of it. While glibc keeps such remainders in
# its bins for small requests, the freed block is not coalesced, and the next one is new memory. The
# bins are limited; after this many calls blocks are reused.
CALLS_UNTIL_KEPT = 12


# One arena: what a thread has freed serves the others too.
SETTINGS = ((M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1), (M_MXFAST, 0))
LARGE = 32 << 20  # bytes; the most that glibc takes from a heap by itself


def keep_freed_memory(*, large: bool = True) -> bool:
    """Ask glibc to return no memory to the system, for this process and from now on.

    Args:
        large: Also blocks of `LARGE` and more, between which gaps of their size remain.

    Returns:
        Whether it complies; other C libraries have no such setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    of_large = (M_MMAP_MAX, 0) if large else (M_MMAP_THRESHOLD, LARGE)
    return all(mallopt(*setting) for setting in (*SETTINGS, of_large))


def give_back_freed_memory() -> bool:
    """Return freed memory to the system; takes a third of a second per gigabyte.

    Returns:
        Whether any was returned; C libraries other than glibc are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))


class KeptMemory:
    """Keeps freed memory from chunk to chunk, but not without limit.

    The same small remainders that delay the reuse of blocks are now and then given to small objects
    that stay, and part a gap in two: a little of what was freed fits nothing any more. Then all of
    it is returned.
    """

    SHARE = 0.25  # of what is in use between two chunks

    def __init__(self) -> None:
        """Keep memory from now on."""
        import psutil  # optional where only a GPU is measured

        keep_freed_memory(large=False)
        self._process = psutil.Process()
        self._limit: float | None = None

    def review(self) -> bool:
        """Return freed memory if too much has gathered; call after each chunk.

        Returns:
            Whether it was returned.
        """
        if self._limit is None:
            returned = give_back_freed_memory()
            self._limit = (1 + self.SHARE) * self._resident()
            return returned
        return self._resident() > self._limit and give_back_freed_memory()

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)
