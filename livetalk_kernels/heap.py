"""What becomes of freed memory: kept, so that no call pays its page faults again, or given back.

A call allocates its outputs. glibc gives large blocks back to the system when they are freed, or
keeps them, by what was freed before; the next call then waits for the system to clear the same
pages, or does not. That costs several times what a fused op does, and says nothing about it. What
loading a model has freed is another matter: it is as much as the model, and is not used again.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_MXFAST = -1, -4, 1  # of glibc's malloc.h

# Each aligned block leaves a small rest in front of it. While glibc sets such rests aside for small
# requests, the freed block does not become whole again, and the next one is new memory. It sets a
# limited number aside; after this many calls blocks are used again.
CALLS_UNTIL_KEPT = 12


SETTINGS = ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_MXFAST, 0))


def keep_freed_memory() -> bool:
    """Ask glibc, for this process and from now on, to give no memory back to the system.

    Returns:
        Whether it does; other C libraries have no such setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in SETTINGS)


def give_back_freed_memory() -> bool:
    """Give the system what has been freed and kept until now; a third of a second for a gigabyte.

    Returns:
        Whether anything was given back; other C libraries than glibc keep to their own ways.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))
