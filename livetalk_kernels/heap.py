"""Controls freed memory: kept, so that later calls don't pay its page faults again, or returned.

Every call allocates its outputs. Depending on what was freed before, glibc returns large blocks to
the system or keeps them; if returned, the next call waits for the system to zero the same pages.
That costs several times a fused op's own time and hides in its measurement. Memory freed while
loading is different: it is as large as the model, and is never reused.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_MXFAST = -1, -4, 1  # from glibc's malloc.h

# Each aligned block leaves a small remainder in front of it. While glibc keeps such remainders in
# its bins for small requests, the freed block is not coalesced, and the next one is new memory. The
# bins are limited; after this many calls blocks are reused.
CALLS_UNTIL_KEPT = 12


SETTINGS = ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_MXFAST, 0))


def keep_freed_memory() -> bool:
    """Ask glibc to return no memory to the system, for this process and from now on.

    Returns:
        Whether it complies; other C libraries have no such setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in SETTINGS)


def give_back_freed_memory() -> bool:
    """Return freed memory to the system; takes a third of a second per gigabyte.

    Returns:
        Whether any was returned; C libraries other than glibc are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))
